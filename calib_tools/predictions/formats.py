"""Volumes as people save them, predictions and labels alike: one reader class for each format.

| class | files | axes |
|---|---|---|
| `Nifti` | `NAME.nii.gz` of probabilities, such as `NAME_probability.nii.gz` | `(X, Y, Z, C)` |
| | `NAME.nii.gz` of one channel | `(X, Y, Z)` |
| | `NAME.nii.gz` of whole numbers: a label map | `(X, Y, Z)` or `(X, Y, Z, 1)` |
| `NnUNetArray` | `NAME.npz` of nnU-Net, with `NAME.nii.gz` | `(C, Z, Y, X)` |
| `PlainArray` | `NAME.npy`, with `NAME.nii.gz` or alone | `(C, X, Y, Z)` or `(X, Y, Z)` |
| | `NAME.npy` of a label in 2D | `(X, Y)` |

Files are data: nothing in them is ever run. A new format is a class with `header` and `load`, and
an entry of `FORMATS`; predictions and labels are then read with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch

from calib_components.errors import InputError, reading
from calib_components.probabilities import SUM_TOLERANCE
from calib_workflows.data.files import files_below, split_name
from calib_workflows.data.nifti import open_nifti, read_values
from calib_workflows.data.transforms import whole

ARRAY = "an array of numbers, as numpy saves it"
SLACK = 1e-3  # beyond [0, 1], by rounding and interpolation
FEWEST_SUMS = 16  # below which sums of 1 may be chance
SMALLEST = float(np.finfo(np.float32).tiny)  # what a 0 of 32 bits can have been, for logarithms


class Header(NamedTuple):
    """The number of channels, 0 for a label map, the shape `(X, Y, Z)`, and the affine; None if no
    file says it.
    """

    channels: int
    shape: tuple[int, ...]
    affine: np.ndarray | None


class Stored(NamedTuple):
    """Probabilities of a prediction.

    Attributes:
        values: `(C, X, Y, Z)`, float32.
        lowest: What a stored 0 can have been, for logarithms.
        highest: What a stored 1 can have been.
        pairwise_dsc: Of several networks, the mean DSC over their pairs, by structure.
    """

    values: np.ndarray
    lowest: float
    highest: float
    pairwise_dsc: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class Reader(ABC):
    """Reads the volume in a file. Each format is a subclass."""

    file: Path

    @property
    def stem(self) -> str:
        """Name of the file, without the ending of its format."""
        return split_name(self.file.name, (), FORMATS).case

    @property
    def grid_files(self) -> tuple[Path, ...]:
        """Files beside it that may say where its voxels lie."""
        return ()

    @property
    def is_label_map(self) -> bool:
        """Whether it holds classes in place of probabilities."""
        return self.header().channels == 0

    @abstractmethod
    def header(self) -> Header:
        """Read what is known before the voxels are.

        Raises:
            InputError: The file is damaged, or does not belong to its grid.
        """

    @abstractmethod
    def load(self) -> tuple[np.ndarray, np.dtype, float]:
        """Read the values `(C, X, Y, Z)`; and the type and the scale factor that they are stored
        with.
        """

    def probabilities(self, sigmoid: bool, skip: int = 0) -> Stored:
        """Read the probabilities without the first `skip` channels, and check them.

        Values may be beyond [0, 1] by 0.001, and unless each channel has a sigmoid, their sums
        differ from 1 by 0.01 and the rounding of integers. They are then clipped and divided by
        their sums, so that these are 1 again. A stored 0 can have been half the smallest number
        above 0 that the file can hold.

        Raises:
            InputError: The values are no probabilities.
        """
        values, dtype, scale = self.load()
        step = scale if dtype.kind in "iu" else 0.0
        if dtype.kind not in "iuf" or step == 1:
            raise InputError(
                f"{self.file}: {dtype} values are no probabilities. Save floating-point"
                " numbers, or integers with a scale factor in the header of a NIfTI file."
            )
        values = np.array(values[skip:], np.float32, order="C")
        _check(values, sigmoid, step, self.file)
        values.clip(0, 1, out=values)
        if not sigmoid:
            values /= values.sum(0)
        if step:
            return Stored(values, step / 2, 1 - step / 2)
        if dtype == np.float16:
            return Stored(values, 2.0**-25, 1 - 2.0**-12)
        return Stored(values, SMALLEST, 1 - 2.0**-24)

    def label_codes(self, are_several: bool = False) -> np.ndarray:
        """Read the codes of a label map, int32 `(X, Y, Z)`.

        Raises:
            InputError: There are several channels, values that are not whole numbers, or booleans
                where `are_several` structures need a code each.
        """
        values, dtype, _ = self.load()
        if len(values) != 1:
            raise InputError(f"{self.file}: {len(values)} channels are no label map.")
        if are_several and dtype.kind == "b":
            raise InputError(
                f"{self.file}: booleans do not tell the structures of the prediction apart. Save"
                " their label codes as integers."
            )
        values = whole(torch.from_numpy(np.array(values[0], np.float32))).numpy()
        with np.errstate(invalid="ignore"):
            codes = values.astype(np.int32)
        if (codes != values).any():
            raise InputError(f"{self.file}: label codes are not whole numbers.")
        return codes


@dataclass(frozen=True)
class Nifti(Reader):
    """A NIfTI file, the channels along the fourth axis."""

    def header(self) -> Header:
        image = open_nifti(self.file)
        if len(image.shape) not in (3, 4):
            raise InputError(
                f"{self.file}: shape {image.shape} is that of no prediction or label. Save labels"
                " in 2D as (X, Y, 1), probabilities as (X, Y, 1, C)."
            )
        channels = (*image.shape, 1)[3]
        stored: Any = image.dataobj
        is_whole = stored.dtype.kind in "iu" and stored.slope == 1
        is_label_map = is_whole and channels == 1
        return Header(0 if is_label_map else channels, image.shape[:3], image.affine)

    def load(self) -> tuple[np.ndarray, np.dtype, float]:
        image = open_nifti(self.file)
        values = read_values(image, self.file)
        values = values[None] if values.ndim == 3 else np.moveaxis(values, 3, 0)
        stored: Any = image.dataobj
        return values, stored.dtype, abs(float(stored.slope))


@dataclass(frozen=True)
class PlainArray(Reader):
    """An array that `numpy.save` wrote."""

    @property
    def grid_files(self) -> tuple[Path, ...]:
        """A NIfTI file of the same name."""
        beside = [self.file.with_suffix(end) for end in (".nii", ".nii.gz")]
        return tuple(file for file in beside if file.is_file())

    def array_shape(self) -> tuple[int, ...]:
        """Return the shape of the array, `(C, X, Y, Z)`, from its header."""
        shape = np.load(self.file, mmap_mode="r", allow_pickle=False).shape
        if len(shape) == 2:
            shape = (*shape, 1)
        return (1, *shape) if len(shape) == 3 else shape

    def header(self) -> Header:
        with reading(self.file, ARRAY):
            shape = self.array_shape()
        if len(shape) != 4:
            raise InputError(
                f"{self.file}: an array of {len(shape)} axes is no prediction, channels first."
            )
        affine = None
        for file in self.grid_files[:1]:
            image = open_nifti(file)
            affine = image.affine
            if image.shape[:3] != shape[1:]:
                raise InputError(
                    f"{self.file}: shape {shape[1:]} is not {image.shape[:3]} of {file}."
                )
        return Header(shape[0], shape[1:], affine)

    def load(self) -> tuple[np.ndarray, np.dtype, float]:
        with reading(self.file, ARRAY) as file:
            values = np.load(file, allow_pickle=False).reshape(self.array_shape())
        return values, values.dtype, 1.0


@dataclass(frozen=True)
class NnUNetArray(PlainArray):
    """Probabilities of nnU-Net, the spatial axes in reverse order."""

    def array_shape(self) -> tuple[int, ...]:
        with np.load(self.file) as archive, archive.zip.open("probabilities.npy") as array:
            np.lib.format.read_magic(array)
            shape = np.lib.format.read_array_header_1_0(array)[0]
        return (*shape[:1], *shape[:0:-1])

    def load(self) -> tuple[np.ndarray, np.dtype, float]:
        with reading(self.file, ARRAY) as file, np.load(file) as archive:
            values = archive["probabilities"].transpose(0, 3, 2, 1)
        return values, values.dtype, 1.0


@dataclass(frozen=True)
class Prediction:
    """The prediction of a case: the volume of each network by its name; of one, "" will do."""

    members: Mapping[str, Reader]

    @property
    def first(self) -> Reader:
        """The volume of the first network, or of the only one."""
        return next(iter(self.members.values()))

    @property
    def file(self) -> Path:
        """The file of the first network, for messages."""
        return self.first.file

    @property
    def is_label_map(self) -> bool:
        """Whether it holds classes; the shares of several votes are probabilities."""
        return len(self.members) == 1 and self.first.is_label_map


FORMATS: dict[str, type[Reader]] = {  # by the ending of their files
    ".nii": Nifti,
    ".nii.gz": Nifti,
    ".npz": NnUNetArray,
    ".npy": PlainArray,
}


class Volume(NamedTuple):
    """A volume in a folder: the name of its case, the suffix of its file and its reader."""

    case: str
    suffix: str
    reader: Reader


def make_reader(file: Path) -> Reader:
    """Return the reader of a file."""
    ending = split_name(file.name, (), FORMATS).ending.lower()
    if not ending:
        raise InputError(f"{file}: unknown format. Known endings: {', '.join(FORMATS)}.")
    return FORMATS[ending](file)


def find_volumes(folder: Path, suffixes: Collection[str]) -> list[Volume]:
    """Find the volumes of known formats in a folder and its subfolders."""
    files = ((split_name(file.name, suffixes, FORMATS), file) for file in files_below(folder))
    return [
        Volume(name.case, name.suffix.lower(), make_reader(file))
        for name, file in files
        if name.ending
    ]


def _sum_to_1(values: np.ndarray, axis: int, slack: float) -> bool:
    """Return whether values that differ along an axis sum to 1 along it, in 16 places or more."""
    if values.shape[axis] < 2 or values.size < FEWEST_SUMS * values.shape[axis]:
        return False
    differ = values.max(axis) - values.min(axis) > 0.1
    return bool((np.abs(values.sum(axis) - 1) <= slack).all() and differ.any())


def _check(values: np.ndarray, sigmoid: bool, step: float, file: Path) -> None:
    """Check that values `(C, X, Y, Z)` are probabilities."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise InputError(f"{file}: probabilities are NaN or infinite.")
    if low < -SLACK - step / 2 or high > 1 + SLACK + step / 2:
        raise InputError(
            f"{file}: values from {low:.4g} to {high:.4g} are no probabilities. Apply"
            f" {'sigmoid' if sigmoid else 'softmax'} to logits, divide percentages by 100, store"
            " label maps as integers."
        )
    slacks = [min(SUM_TOLERANCE + length * step, 0.5) for length in values.shape]
    if sigmoid:
        for axis, slack in enumerate(slacks):
            if _sum_to_1(values, axis, slack):
                raise InputError(
                    f"{file}: values sum to 1 along {'CXYZ'[axis]}, as classes of a softmax do."
                    " Leave --sigmoid out; save classes in 2D as (C, X, Y, 1), as NIfTI (X, Y, 1,"
                    " C)."
                )
    else:
        sums, slack = values.sum(0), slacks[0]
        low, high = float(sums.min()), float(sums.max())
        if low < 1 - slack or high > 1 + slack:
            raise InputError(
                f"{file}: probabilities of {len(values)} classes add up to {low:.4g} to {high:.4g},"
                " not 1. Pass --sigmoid if channels are structures. Where nothing was predicted,"
                " give the background 1."
            )
