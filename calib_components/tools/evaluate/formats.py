"""Predictions as people save them: one class for each format.

| class | files | axes |
|---|---|---|
| `ChannelFiles` | `NAME_0.nii.gz`, `NAME_1.nii.gz`, ...: one file for each channel | `(X, Y, Z)` |
| `NnUNetArray` | `NAME.npz` of nnU-Net's `--save_probabilities`, with `NAME.pkl` or `NAME.nii.gz` | `(C, Z, Y, X)` |
| `PlainArray` | `NAME.npy`, which may have `NAME.nii.gz` beside it | `(C, X, Y, Z)` or `(X, Y, Z)` |
| `Volume` | `NAME.nii.gz`, or `NAME_probability.nii.gz` of our inference | `(X, Y, Z, C)` or `(X, Y, Z)` |
| `LabelMap` | `NAME.nii.gz` or `NAME_seg.nii.gz` of whole numbers | `(X, Y, Z)` or `(X, Y, Z, 1)` |

NIfTI files end in `.nii` or `.nii.gz`. `(X, Y, Z)` in place of four axes is one channel. Files are data: nothing in
them is ever run, also not in a pickle. A new format is a class with `find`, `header` and `load`, and an entry of
`FORMATS`.
"""

from __future__ import annotations

import re
import zipfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
from nibabel.spatialimages import SpatialImage
from nibabel.volumeutils import apply_read_scaling

from calib_components.data.nifti import check_affine, check_same_grid, open_nifti, read_stored, read_values
from calib_components.errors import InputError, reading
from calib_components.tools.evaluate.plain_pickle import load_plain

__all__ = ["FORMATS", "Header", "LabelMap", "Prediction", "Stored", "is_label_map", "open_label_map", "read_label_map"]

KEYS = ("probabilities", "softmax")  # of the array in nnU-Net's files, versions 2 and 1
SLACK = 1e-3  # beyond [0, 1], by rounding and interpolation
SUM_SLACK = 1e-2  # of a sum of half-precision numbers
SMALLEST = float(np.finfo(np.float32).tiny)  # in place of a 0 among 32-bit numbers, where a logarithm is taken
PROBABILITY, UNCERTAINTY, SEGMENTATION = "_probability", "_uncertainty", "_seg"  # endings of what our inference writes

Groups = Mapping[tuple[Path, str], Mapping[str, Path]]  # files by folder and name, then by ending; .nii is also .nii.gz


class Header(NamedTuple):
    """What is known of a prediction before its voxels are read.

    Attributes:
        channels: Number of channels; 0 for a label map.
        shape: Number of voxels along each axis, `(X, Y, Z)`.
        affine: `(4, 4)`, from voxel indices to millimetres in NIfTI's axes; None if no file says it.
    """

    channels: int
    shape: tuple[int, ...]
    affine: np.ndarray | None


class Stored(NamedTuple):
    """The probabilities of a file.

    Attributes:
        values: float32 `(C, X, Y, Z)`, from 0 to 1; with softmax, the sum over channels is 1.
        lowest: What a stored 0 can have been, for logarithms: half the smallest number above 0 that the file can hold,
            or the smallest normal 32-bit number.
        highest: What a stored 1 can have been, likewise.
    """

    values: np.ndarray
    lowest: float
    highest: float


@dataclass(frozen=True)
class Prediction:
    """The files of one prediction. Each format is a subclass.

    Attributes:
        name: What it is called.
        files: Its one file, or a file for each channel.
        grids: Files beside an array, of which the first that does says where its voxels lie: `.pkl`, NIfTI.
    """

    name: str
    files: tuple[Path, ...]
    grids: tuple[Path, ...] = ()

    @classmethod
    def find(cls, groups: Groups, names: Collection[str]) -> Iterator[tuple[int, Prediction]]:
        """Give the predictions of this format with their rank: the lowest of several of one name is taken.

        Args:
            groups: Files that are not in predictions of earlier formats.
            names: Names that files have even if they end like a suffix, such as `patient_1`.
        """
        raise NotImplementedError

    def header(self) -> Header:
        """Read what is known before the voxels are; raise `InputError` if the files do not belong together."""
        raise NotImplementedError

    def load(self) -> tuple[np.ndarray, np.dtype, float]:
        """Read the values `(C, X, Y, Z)`; and the type and the scale factor that they are stored with."""
        raise NotImplementedError

    def probabilities(self, sigmoid: bool, skip: int = 0) -> Stored:
        """Read the probabilities, and check them.

        Values may be beyond [0, 1] by 0.001, and sums over channels of a softmax differ from 1 by 0.01 and the rounding
        of integers. Values are then clipped and divided by their sum, so that what was rounded adds up to 1 again.

        Args:
            sigmoid: Whether each channel is a binary problem of its own.
            skip: Number of channels at the start that are not read.

        Raises:
            InputError: A file cannot be read, or its values are not probabilities.
        """
        values, dtype, step = self.load()
        if dtype.kind != "f" and (dtype.kind not in "iu" or step == 1):
            raise InputError(
                f"{self.files[0]}: {dtype} values are no probabilities. Save floating-point numbers, or integers "
                "with a scale factor in the header of a NIfTI file."
            )
        values = np.array(values[skip:], np.float32, order="C")
        step = step if dtype.kind in "iu" else 0.0
        _check(values, sigmoid, step, self.files[0])
        values.clip(0, 1, out=values)
        if not sigmoid:
            values /= values.sum(0)
        if step:
            return Stored(values, step / 2, 1 - step / 2)
        if dtype == np.float16:
            return Stored(values, 2.0**-25, 1 - 2.0**-12)
        return Stored(values, SMALLEST, 1 - 2.0**-24)


@dataclass(frozen=True)
class Volume(Prediction):
    """Probabilities in one NIfTI file, the channels along the fourth axis."""

    axes: ClassVar[tuple[int, ...]] = (3, 4)

    @classmethod
    def find(cls, groups: Groups, names: Collection[str]) -> Iterator[tuple[int, Prediction]]:
        for (_, stem), by_ending in groups.items():
            if (file := by_ending.get(".nii")) is None or (stem not in names and stem.endswith(UNCERTAINTY)):
                continue
            suffixes = () if stem in names else (PROBABILITY, SEGMENTATION)
            suffix = next((suffix for suffix in suffixes if stem.endswith(suffix)), "")
            kind = LabelMap if is_label_map(file) else Volume
            if kind is cls:
                yield {PROBABILITY: 0, "": 1, SEGMENTATION: 2}[suffix], cls(stem.removesuffix(suffix), (file,))

    def header(self) -> Header:
        first = open_nifti(self.files[0])
        shape, rest = first.shape[:3], first.shape[3:]
        if len(first.shape) not in self.axes or min(first.shape) < 1:
            raise InputError(f"{self.files[0]}: a volume of shape {first.shape} is no prediction.")
        for file in self.files[1:]:
            check_same_grid(file, self.files[0])
        return Header(self.channels(rest), shape, first.affine)

    def channels(self, rest: tuple[int, ...]) -> int:
        """Number of channels of files whose axes after the third are `rest`."""
        return (*rest, 1)[0]

    def load(self) -> tuple[np.ndarray, np.dtype, float]:
        images = [open_nifti(file) for file in self.files]
        parts = [read_values(image, file) for image, file in zip(images, self.files, strict=True)]
        values = np.stack(parts) if parts[0].ndim == 3 else np.moveaxis(parts[0], 3, 0)
        return values, images[0].get_data_dtype(), max(abs(float(cast(Any, image.dataobj).slope)) for image in images)


@dataclass(frozen=True)
class LabelMap(Volume):
    """A label map: no probabilities."""

    def channels(self, rest: tuple[int, ...]) -> int:
        return 0


@dataclass(frozen=True)
class ChannelFiles(Volume):
    """Probabilities in a NIfTI file for each channel, which are numbered from 0."""

    axes: ClassVar[tuple[int, ...]] = (3,)

    @classmethod
    def find(cls, groups: Groups, names: Collection[str]) -> Iterator[tuple[int, Prediction]]:
        found: dict[tuple[Path, str], dict[int, Path]] = defaultdict(dict)
        for (folder, stem), files in groups.items():
            if ".nii" in files and stem not in names and (match := re.fullmatch(r"(.+)_(0|[1-9]\d*)", stem, re.DOTALL)):
                found[folder, match[1]][int(match[2])] = files[".nii"]
        for (_, name), numbered in found.items():
            if len(numbered) > 1 and numbered.keys() == set(range(len(numbered))):
                parts = tuple(numbered[index] for index in range(len(numbered)))
                if len(open_nifti(parts[0]).shape) == 3 and not is_label_map(parts[0]):
                    yield 0, cls(name, parts)

    def channels(self, rest: tuple[int, ...]) -> int:
        return len(self.files)


@dataclass(frozen=True)
class PlainArray(Prediction):
    """Probabilities that `numpy.save` wrote."""

    ending: ClassVar[str] = ".npy"
    first_axis: ClassVar[str] = "(C, X, Y, Z)"

    @classmethod
    def find(cls, groups: Groups, names: Collection[str]) -> Iterator[tuple[int, Prediction]]:
        for (_, stem), files in groups.items():
            if cls.ending in files:
                yield 0, cls(stem, (files[cls.ending],), tuple(files[end] for end in (".pkl", ".nii") if end in files))

    def array_shape(self) -> tuple[int, ...]:
        """Shape of the array, `(C, X, Y, Z)`, from its header."""
        shape = np.load(self.files[0], mmap_mode="r", allow_pickle=False).shape
        return (1, *shape) if len(shape) == 3 else shape

    def header(self) -> Header:
        with reading(self.files[0], "an array of numbers, as numpy saves it"):
            shape = self.array_shape()
        if len(shape) != 4 or min(shape) < 1:
            raise InputError(f"{self.files[0]}: an array of {len(shape)} axes is no prediction {self.first_axis}.")
        return Header(shape[0], shape[1:], self._affine(shape[1:]))

    def _affine(self, shape: tuple[int, ...]) -> np.ndarray | None:
        """Read where the voxels lie."""
        for grid in self.grids:
            if grid.suffix.lower() == ".pkl":
                if (affine := _affine_of_properties(grid)) is not None:
                    return affine
                continue
            image = open_nifti(grid)
            if image.shape[:3] != shape:
                raise InputError(
                    f"{self.files[0]}: shape {shape} is not that of {grid} beside it, {image.shape[:3]}. nnU-Net's "
                    "first version saves only the part that it crops to."
                )
            return image.affine
        return None

    def load(self) -> tuple[np.ndarray, np.dtype, float]:
        with reading(self.files[0], "an array of numbers, as numpy saves it") as file:
            values = np.load(file, allow_pickle=False)
        return values.reshape(-1, *values.shape[-3:]), values.dtype, 1.0


@dataclass(frozen=True)
class NnUNetArray(PlainArray):
    """Probabilities of nnU-Net, the spatial axes in reverse order."""

    ending: ClassVar[str] = ".npz"
    first_axis: ClassVar[str] = "(C, Z, Y, X)"

    def array_shape(self) -> tuple[int, ...]:
        with zipfile.ZipFile(self.files[0]) as archive, archive.open(f"{self._key(archive.namelist())}.npy") as array:
            version = np.lib.format.read_magic(array)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape = read(array)[0]
        return (*shape[:1], *shape[:0:-1])

    def load(self) -> tuple[np.ndarray, np.dtype, float]:
        with reading(self.files[0], "an array of numbers, as numpy saves it") as file, np.load(file) as archive:
            values = archive[self._key(archive.files)].transpose(0, 3, 2, 1)
        return values, values.dtype, 1.0

    def _key(self, names: Collection[str]) -> str:
        stems = [name.removesuffix(".npy") for name in names]
        for key in KEYS:
            if key in stems:
                return key
        raise InputError(f"{self.files[0]}: no array is called {KEYS[0]}, as in nnU-Net's files: {', '.join(stems)}.")


FORMATS: tuple[type[Prediction], ...] = (ChannelFiles, NnUNetArray, PlainArray, Volume, LabelMap)


def _affine_of_properties(file: Path) -> np.ndarray | None:
    """Read the affine from the properties that nnU-Net saves; None if it did not record one."""
    with reading(file, "the properties of an image that nnU-Net saves") as path:
        properties = load_plain(path.read_bytes())
        if "nibabel_stuff" in properties:
            stuff = properties["nibabel_stuff"]  # the array has the axes that the image had for the network
            affine = np.array(stuff.get("reoriented_affine", stuff["original_affine"]), float).reshape(4, 4)
        elif "sitk_stuff" in properties:
            stuff = properties["sitk_stuff"]
            affine = np.eye(4)
            affine[:3, :3] = np.reshape(stuff["direction"], (3, 3)) * np.asarray(stuff["spacing"], float)
            affine[:3, 3] = stuff["origin"]
            affine = np.diag([-1.0, -1, 1, 1]) @ affine  # ITK's axes point left and back, NIfTI's right and front
        else:
            return None
        check_affine(affine, file)
    return affine


def _check(values: np.ndarray, sigmoid: bool, step: float, file: Path) -> None:
    """Check that values `(C, X, Y, Z)` are probabilities."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise InputError(f"{file}: probabilities are NaN or infinite.")
    if low < -SLACK - step / 2 or high > 1 + SLACK + step / 2:
        raise InputError(
            f"{file}: values from {low:.4g} to {high:.4g} are no probabilities. Apply "
            f"{'sigmoid' if sigmoid else 'softmax'} to logits, divide percentages by 100, store label maps as integers."
        )
    if not sigmoid:
        sums = values.sum(0)
        low, high = float(sums.min()), float(sums.max())
        slack = min(SUM_SLACK + len(values) * step, 0.5)
        if low < 1 - slack or high > 1 + slack:
            raise InputError(
                f"{file}: probabilities of {len(values)} classes add up to {low:.4g} to {high:.4g}, not 1. Pass "
                "--sigmoid if channels are structures. Where nothing was predicted, give the background 1."
            )


def is_label_map(file: Path) -> bool:
    """Whether a NIfTI file has one whole number for each voxel."""
    image = open_nifti(file)
    is_volume = len(image.shape) == 3 or image.shape[3:] == (1,)
    return is_volume and image.get_data_dtype().kind in "iu" and cast(Any, image.dataobj).slope == 1


def open_label_map(file: Path) -> SpatialImage:
    """Open a label file and check its header; the voxels are not read."""
    image = open_nifti(file)
    if len(image.shape) != 3 and image.shape[3:] != (1,):
        raise InputError(f"{file}: a volume of shape {image.shape} is no label map.")
    return image


def read_label_map(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the codes of a label file, whole numbers `(X, Y, Z)`, and its affine.

    Raises:
        InputError: See `open_label_map`; or it has values that are not whole numbers.
    """
    image = open_label_map(file)
    proxy = cast(Any, image.dataobj)
    values = apply_read_scaling(read_stored(image, file), proxy.slope, proxy.inter).reshape(image.shape[:3])
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or np.any(values % 1) or np.any(np.abs(values) >= 2.0**63):
            raise InputError(f"{file}: label codes are not whole numbers of 64 bits.")
        values = values.astype(np.int64)
    return values, image.affine
