"""Predictions as people save them: one reader class for each format.

| class | files | axes |
|---|---|---|
| `Nifti` | `NAME.nii.gz`, or `NAME_probability.nii.gz` of our inference | `(X, Y, Z, C)` or `(X, Y, Z)` |
| | `NAME_0.nii.gz`, `NAME_1.nii.gz`, ...: a file for each channel | `(X, Y, Z)` |
| | `NAME.nii.gz` or `NAME_seg.nii.gz` of whole numbers: a label map | `(X, Y, Z)` or `(X, Y, Z, 1)` |
| `NnUNetArray` | `NAME.npz` of nnU-Net's `--save_probabilities`, with `NAME.pkl` or `NAME.nii.gz` | `(C, Z, Y, X)` |
| `PlainArray` | `NAME.npy`, which may have `NAME.nii.gz` beside it | `(C, X, Y, Z)` or `(X, Y, Z)` |

Files are data: nothing in them is ever run, also not in a pickle. A new format of arrays is a class
    with `header` and
`load`, and an entry of `ARRAYS`.
"""

from __future__ import annotations

import io
import pickle
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from calib_components.data.nifti import check_affine, check_same_grid, open_nifti, read_values
from calib_components.data.transforms import whole
from calib_components.errors import InputError, reading
from calib_components.metrics.voxels import sum_to_1

ARRAY = "an array of numbers, as numpy saves it"
SLACK = 1e-3  # beyond [0, 1], by rounding and interpolation
SUM_SLACK = 1e-2  # of a sum of half-precision numbers
SMALLEST = float(np.finfo(np.float32).tiny)  # what a 0 of 32 bits can have been, for logarithms

# A pickle names what it calls. Numbers, texts and containers name nothing; arrays name these.
PLAIN = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("__builtin__", "bytes"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}


class Header(NamedTuple):
    """The number of channels, 0 for a label map, the shape `(X, Y, Z)`, and the affine; None if no
    file says it.
    """

    channels: int
    shape: tuple[int, ...]
    affine: np.ndarray | None


class Stored(NamedTuple):
    """Probabilities `(C, X, Y, Z)`, float32, and what a stored 0 and 1 can have been, for
    logarithms.
    """

    values: np.ndarray
    lowest: float
    highest: float


@dataclass(frozen=True)
class Prediction(ABC):
    """The one file of a prediction, or a file for each channel. Each format is a subclass.

    The first of `grids` that knows, files beside an array, says where its voxels lie: `.pkl`,
    NIfTI.
    """

    name: str
    files: tuple[Path, ...]
    grids: tuple[Path, ...] = ()

    @abstractmethod
    def header(self) -> Header:
        """Read what is known before the voxels are; raise `InputError` if the files do not belong
        together.
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
        """
        values, dtype, scale = self.load()
        step = scale if dtype.kind in "iu" else 0.0
        if dtype.kind not in "iuf" or step == 1:
            raise InputError(
                f"{self.files[0]}: {dtype} values are no probabilities. Save floating-point"
                " numbers, or integers with a scale factor in the header of a NIfTI file."
            )
        values = np.array(values[skip:], np.float32, order="C")
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
class Nifti(Prediction):
    """Probabilities in one NIfTI file, the channels along the fourth axis, or a file for each; or a
    label map.
    """

    def header(self) -> Header:
        image, several = open_nifti(self.files[0]), len(self.files) > 1
        shape, rest = image.shape[:3], image.shape[3:]
        if len(shape) < 3 or len(rest) > (0 if several else 1):
            raise InputError(f"{self.files[0]}: a volume of shape {image.shape} is no prediction.")
        for file in self.files[1:]:
            check_same_grid(file, self.files[0])
        if several:
            return Header(len(self.files), shape, image.affine)
        return Header(0 if is_label_map(self.files[0]) else (*rest, 1)[0], shape, image.affine)

    def load(self) -> tuple[np.ndarray, np.dtype, float]:
        images = [open_nifti(file) for file in self.files]
        parts = [read_values(image, file) for image, file in zip(images, self.files, strict=True)]
        values = np.stack(parts) if parts[0].ndim == 3 else np.moveaxis(parts[0], 3, 0)
        return (
            values,
            images[0].get_data_dtype(),
            max(abs(float(cast(Any, image.dataobj).slope)) for image in images),
        )


@dataclass(frozen=True)
class PlainArray(Prediction):
    """Probabilities that `numpy.save` wrote."""

    def array_shape(self) -> tuple[int, ...]:
        """Return the shape of the array, `(C, X, Y, Z)`, from its header."""
        shape = np.load(self.files[0], mmap_mode="r", allow_pickle=False).shape
        return (1, *shape) if len(shape) == 3 else shape

    def header(self) -> Header:
        with reading(self.files[0], ARRAY):
            shape = self.array_shape()
        if len(shape) != 4:
            raise InputError(
                f"{self.files[0]}: an array of {len(shape)} axes is no prediction, channels first."
            )
        affine = None
        for grid in self.grids:
            if affine is None and grid.suffix.lower() == ".pkl":
                affine = _affine_of_properties(grid)
            elif affine is None:
                affine, on_grid = open_nifti(grid).affine, open_nifti(grid).shape[:3]
                if on_grid != shape[1:]:
                    raise InputError(
                        f"{self.files[0]}: shape {shape[1:]} is not {on_grid} of {grid}."
                    )
        return Header(shape[0], shape[1:], affine)

    def load(self) -> tuple[np.ndarray, np.dtype, float]:
        with reading(self.files[0], ARRAY) as file:
            values = np.load(file, allow_pickle=False)
        return values.reshape(-1, *values.shape[-3:]), values.dtype, 1.0


@dataclass(frozen=True)
class NnUNetArray(PlainArray):
    """Probabilities of nnU-Net, the spatial axes in reverse order."""

    def array_shape(self) -> tuple[int, ...]:
        with np.load(self.files[0]) as archive, archive.zip.open("probabilities.npy") as array:
            np.lib.format.read_magic(array)
            shape = np.lib.format.read_array_header_1_0(array)[0]
        return (*shape[:1], *shape[:0:-1])

    def load(self) -> tuple[np.ndarray, np.dtype, float]:
        with reading(self.files[0], ARRAY) as file, np.load(file) as archive:
            values = archive["probabilities"].transpose(0, 3, 2, 1)
        return values, values.dtype, 1.0


ARRAYS: dict[str, type[PlainArray]] = {".npz": NnUNetArray, ".npy": PlainArray}


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, texts, containers and numeric arrays; for anything else it raises an error and
    runs nothing.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PLAIN:
            raise pickle.UnpicklingError(
                f"{module}.{name}, which is no plain value; it was not loaded"
            )
        return super().find_class(module, name)


def _affine_of_properties(file: Path) -> np.ndarray | None:
    """Read the affine from the properties that nnU-Net saves; None if it did not record one."""
    with reading(file, "the properties of an image that nnU-Net saves") as path:
        properties = _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
        if "nibabel_stuff" in properties:
            # The array has the axes that the image had for the network
            stuff = properties["nibabel_stuff"]
            affine = np.array(
                stuff.get("reoriented_affine", stuff["original_affine"]), float
            ).reshape(4, 4)
        elif "sitk_stuff" in properties:
            stuff = properties["sitk_stuff"]
            affine = np.eye(4)
            affine[:3, :3] = np.reshape(stuff["direction"], (3, 3)) * np.asarray(
                stuff["spacing"], float
            )
            affine[:3, 3] = stuff["origin"]
            # ITK's axes point left and back, NIfTI's right and front
            affine = np.diag([-1.0, -1, 1, 1]) @ affine
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
            f"{file}: values from {low:.4g} to {high:.4g} are no probabilities. Apply"
            f" {'sigmoid' if sigmoid else 'softmax'} to logits, divide percentages by 100, store"
            " label maps as integers."
        )
    if sigmoid and sum_to_1(torch.from_numpy(values)[None], 1):
        raise InputError(
            f"{file}: channels sum to 1, as classes of a softmax do. Leave --sigmoid out."
        )
    if not sigmoid:
        sums = values.sum(0)
        low, high = float(sums.min()), float(sums.max())
        slack = min(SUM_SLACK + len(values) * step, 0.5)
        if low < 1 - slack or high > 1 + slack:
            raise InputError(
                f"{file}: probabilities of {len(values)} classes add up to {low:.4g} to {high:.4g},"
                " not 1. Pass --sigmoid if channels are structures. Where nothing was predicted,"
                " give the background 1."
            )


def is_label_map(file: Path) -> bool:
    """Whether a NIfTI file has one whole number for each voxel."""
    image = open_nifti(file)
    is_whole = image.get_data_dtype().kind in "iu" and cast(Any, image.dataobj).slope == 1
    return is_whole and image.shape[3:] in ((), (1,))


def read_label_map(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the codes of a label file, whole numbers `(X, Y, Z)`, and its affine."""
    image = open_nifti(file)
    if image.shape[3:] not in ((), (1,)):
        raise InputError(f"{file}: a volume of shape {image.shape} is no label map.")
    values = whole(torch.from_numpy(read_values(image, file).reshape(image.shape[:3]))).numpy()
    with np.errstate(invalid="ignore"):
        codes = values.astype(np.int32)
    if (codes != values).any():
        raise InputError(f"{file}: label codes are not whole numbers.")
    return codes, image.affine
