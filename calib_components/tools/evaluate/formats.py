"""Predictions as people have them: files of probabilities, and of label maps.

| kind | files | axes |
|---|---|---|
| probability | `NAME.nii.gz`, or `NAME_probability.nii.gz` of our inference | `(X, Y, Z, C)` or `(X, Y, Z)` |
| channels | `NAME_0.nii.gz`, `NAME_1.nii.gz`, ...: one file for each channel | `(X, Y, Z)` |
| npz | `NAME.npz` of nnU-Net's `--save_probabilities`, with `NAME.pkl` or `NAME.nii.gz` | `(C, Z, Y, X)` |
| npy | `NAME.npy`, which may have `NAME.nii.gz` beside it | `(C, X, Y, Z)` or `(X, Y, Z)` |
| labels | `NAME.nii.gz` or `NAME_seg.nii.gz` of whole numbers | `(X, Y, Z)` or `(X, Y, Z, 1)` |

NIfTI files end in `.nii` or `.nii.gz`. `(X, Y, Z)` in place of four axes is one channel. Files
are data: nothing in them is ever run, also not in a pickle.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from nibabel.orientations import inv_ornt_aff
from nibabel.spatialimages import SpatialImage
from nibabel.volumeutils import apply_read_scaling

from calib_components.data.nifti import axes_onto, check_affine, grid_distance, open_nifti, read_stored, read_values
from calib_components.errors import InputError, reading
from calib_components.tools.evaluate.plain_pickle import load_plain

__all__ = [
    "Header",
    "Prediction",
    "Stored",
    "open_label_map",
    "read_header",
    "read_label_map",
    "read_probabilities",
    "turn_onto",
]

ARRAYS = ("npz", "npy")  # kinds that numpy reads
KEYS = ("probabilities", "softmax")  # of the array in nnU-Net's files, versions 2 and 1
SLACK = 1e-3  # beyond [0, 1], by rounding and interpolation
CROPPED = "; nnU-Net's first version saves only the part that it crops to"
SUM_SLACK = 1e-2  # of a sum of half-precision numbers
SMALLEST = float(np.finfo(np.float32).tiny)  # in place of a 0 among 32-bit numbers, where a logarithm is taken


@dataclass(frozen=True)
class Prediction:
    """The files of one prediction.

    Attributes:
        name: What it is called.
        kind: See this module.
        files: Its one file, or a file for each channel.
        grids: Files beside an array, of which the first that does says where its voxels lie: `.pkl`, NIfTI.
    """

    name: str
    kind: Literal["probability", "channels", "npz", "npy", "labels"]
    files: tuple[Path, ...]
    grids: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Header:
    """What is known of a prediction before its voxels are read.

    Attributes:
        channels: Number of channels; 0 for a label map.
        shape: Number of voxels along each axis, `(X, Y, Z)`.
        affine: `(4, 4)`, from voxel indices to millimetres in NIfTI's axes; None if no file says it.
    """

    channels: int
    shape: tuple[int, ...]
    affine: np.ndarray | None


@dataclass(frozen=True)
class Stored:
    """The probabilities of a file.

    Attributes:
        values: float32 `(C, X, Y, Z)`, from 0 to 1; with softmax, the sum over channels is 1.
        affine: As in `Header`.
        step: Step that integers in the file were rounded to; 0 for floating-point numbers.
        lowest: What a stored 0 can have been, for logarithms: half the smallest number above 0 that the file can hold,
            or the smallest normal 32-bit number.
        highest: What a stored 1 can have been, likewise.
    """

    values: np.ndarray
    affine: np.ndarray | None
    step: float
    lowest: float
    highest: float


def read_header(prediction: Prediction) -> Header:
    """Read what is known of a prediction before its voxels are.

    Raises:
        InputError: A file cannot be read, has other axes than its kind has, or the files do not belong together.
    """
    first = prediction.files[0]
    if prediction.kind in ARRAYS:
        axes = _array_shape(prediction)
        if len(axes) == 3 and prediction.kind == "npy":
            axes = (1, *axes)
        if len(axes) != 4:
            expected = "(C, Z, Y, X)" if prediction.kind == "npz" else "(C, X, Y, Z)"
            raise InputError(f"{first}: expected an array of shape {expected}, got {axes}")
        if min(axes) < 1:
            raise InputError(f"{first}: expected every side of the array to be at least 1, got {axes}")
        shape: tuple[int, ...] = axes[:0:-1] if prediction.kind == "npz" else axes[1:]
        return Header(axes[0], shape, _grid_affine(prediction, shape))
    image = open_nifti(first)
    shape = image.shape[:3]
    if min(image.shape) < 1:
        raise InputError(f"{first}: expected every side of the volume to be at least 1, got {image.shape}")
    four_axes = prediction.kind == "probability" or (prediction.kind == "labels" and image.shape[3:] == (1,))
    if len(image.shape) != 3 and not (four_axes and len(image.shape) == 4):
        expected = "(X, Y, Z, C) or (X, Y, Z)" if prediction.kind == "probability" else "(X, Y, Z)"
        raise InputError(f"{first}: expected a volume of shape {expected}, got {image.shape}")
    for file in prediction.files[1:]:
        other = open_nifti(file)
        if other.shape != shape or grid_distance(other.affine, image.affine, shape):
            raise InputError(f"{file}: expected the voxels of {first}, {shape}, got others, {other.shape}")
    channels = {"labels": 0, "channels": len(prediction.files)}.get(prediction.kind, (*image.shape, 1)[3])
    return Header(channels, shape, image.affine)


def _array_shape(prediction: Prediction) -> tuple[int, ...]:
    """Shape of an array, from its header."""
    with reading(prediction.files[0], "an array of numbers, as numpy saves it") as file:
        if prediction.kind == "npy":
            return np.load(file, mmap_mode="r", allow_pickle=False).shape
        with zipfile.ZipFile(file) as archive, archive.open(f"{_key(archive.namelist(), file)}.npy") as array:
            version = np.lib.format.read_magic(array)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return read(array)[0]


def _key(names: Sequence[str], file: Path) -> str:
    stems = [name.removesuffix(".npy") for name in names]
    for key in KEYS:
        if key in stems:
            return key
    raise InputError(f"{file}: expected an array called {KEYS[0]}, as nnU-Net writes it, got {', '.join(stems)}")


def _grid_affine(prediction: Prediction, shape: tuple[int, ...]) -> np.ndarray | None:
    """Read where the voxels of an array lie."""
    for grid in prediction.grids:
        if grid.suffix.lower() == ".pkl":
            if (affine := _read_properties(grid)) is not None:
                return affine
            continue
        image = open_nifti(grid)
        if image.shape[:3] != shape:
            hint = CROPPED if prediction.kind == "npz" else ""
            raise InputError(
                f"{prediction.files[0]}: expected the shape of {grid} beside it, {image.shape[:3]}, got {shape}{hint}"
            )
        return image.affine
    return None


def _read_properties(file: Path) -> np.ndarray | None:
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


def read_probabilities(prediction: Prediction, sigmoid: bool, skip: int = 0) -> Stored:
    """Read the probabilities of a prediction, and check them.

    Values may be beyond [0, 1] by 0.001, and sums over channels of a softmax differ from 1 by 0.01 and the rounding of
    integers. Values are then clipped and divided by their sum, so that what was rounded adds up to 1 again.

    Args:
        prediction: Its files; not a label map.
        sigmoid: Whether each channel is a binary problem of its own.
        skip: Number of channels at the start that are not read.

    Raises:
        InputError: A file cannot be read, or its values are not probabilities.
    """
    header, first = read_header(prediction), prediction.files[0]
    values, dtype, step = (_load_array if prediction.kind in ARRAYS else _load_nifti)(prediction)
    if dtype.kind != "f" and (dtype.kind not in "iu" or step == 1):
        raise InputError(
            f"{first}: expected probabilities, as floating-point numbers or as integers with a scale factor in the "
            f"header of a NIfTI file, got {dtype} without one"
        )
    values = np.array(values[skip:], np.float32, order="C")
    step = step if dtype.kind in "iu" else 0.0
    _check(values, sigmoid, step, first)
    values.clip(0, 1, out=values)
    if not sigmoid:
        values /= values.sum(0)
    if step:
        lowest, highest = step / 2, 1 - step / 2
    elif dtype == np.float16:
        lowest, highest = 2.0**-25, 1 - 2.0**-12
    else:
        lowest, highest = SMALLEST, 1 - 2.0**-24
    return Stored(values, header.affine, step, lowest, highest)


def _load_array(prediction: Prediction) -> tuple[np.ndarray, np.dtype, float]:
    """Return the values of an array `(C, X, Y, Z)`, and the type and scale factor that they are stored with."""
    file = prediction.files[0]
    with reading(file, "an array of numbers, as numpy saves it"):
        if prediction.kind == "npy":
            values = np.load(file, allow_pickle=False)
        else:
            with np.load(file, allow_pickle=False) as archive:
                values = archive[_key(archive.files, file)].transpose(0, 3, 2, 1)
    return values.reshape(-1, *values.shape[-3:]), values.dtype, 1.0


def _load_nifti(prediction: Prediction) -> tuple[np.ndarray, np.dtype, float]:
    """Return the values of NIfTI files `(C, X, Y, Z)`, and the type and scale factor that they are stored with."""
    images = [open_nifti(file) for file in prediction.files]
    parts = [read_values(image, file) for image, file in zip(images, prediction.files, strict=True)]
    values = np.stack(parts) if parts[0].ndim == 3 else np.moveaxis(parts[0], 3, 0)
    return values, images[0].get_data_dtype(), max(abs(float(cast(Any, image.dataobj).slope)) for image in images)


def _check(values: np.ndarray, sigmoid: bool, step: float, file: Path) -> None:
    """Check that values `(C, X, Y, Z)` are probabilities; say what else they may be."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise InputError(f"{file}: expected finite probabilities, got NaN or infinity")
    if low < -SLACK - step / 2 or high > 1 + SLACK + step / 2:
        if not np.any(values % 1):
            what = "label codes stored as floating-point numbers?; store a label map as integers"
        elif low >= 0 and high <= 100 * (1 + SLACK):
            what = "percentages?; divide them by 100"
        else:
            what = f"logits?; apply {'sigmoid' if sigmoid else 'softmax'} before saving"
        raise InputError(f"{file}: expected probabilities from 0 to 1, got {low:.4g} to {high:.4g}, {what}")
    if not sigmoid:
        sums = values.sum(0)
        low, high = float(sums.min()), float(sums.max())
        slack = min(SUM_SLACK + len(values) * step, 0.5)
        if low < 1 - slack or high > 1 + slack:
            remedy = "--sigmoid reads channels that are structures with a probability of their own"
            if (share := np.mean(sums == 0)) and not np.any(np.abs(sums[sums != 0] - 1) > slack):
                remedy = f"{100 * share:.3g} % of voxels have no probability at all; give the background 1 there"
            raise InputError(
                f"{file}: expected probabilities of {len(values)} classes that add up to 1 in every voxel, got sums "
                f"from {low:.4g} to {high:.4g}; {remedy}"
            )


def open_label_map(file: Path) -> SpatialImage:
    """Open a label file and check its header; the voxels are not read.

    Raises:
        InputError: See `open_nifti`; or it is not three-dimensional.
    """
    image = open_nifti(file)
    if len(image.shape) != 3 and (len(image.shape) != 4 or image.shape[3] != 1):
        raise InputError(f"{file}: expected a label of shape (X, Y, Z), got {image.shape}")
    return image


def read_label_map(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a label file.

    Returns:
        Its codes, whole numbers `(X, Y, Z)`, and its affine.

    Raises:
        InputError: See `open_label_map`; or it has values that are not whole numbers.
    """
    image = open_label_map(file)
    proxy = cast(Any, image.dataobj)
    values = apply_read_scaling(read_stored(image, file), proxy.slope, proxy.inter).reshape(image.shape[:3])
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or np.any(values % 1):
            raise InputError(f"{file}: expected whole numbers, the label codes, got others")
        if (beyond := values[np.abs(values) >= 2.0**63]).size:
            raise InputError(f"{file}: expected label codes of at most 64 bits, got {beyond[0]:.6g}")
        values = values.astype(np.int64)
    return values, image.affine


def turn_onto(header: Header, target: np.ndarray, shape: tuple[int, ...], names: tuple[Any, Any]) -> np.ndarray | None:
    """Find how a prediction comes onto the voxels of a label: its axes may be in another order or direction.

    Args:
        header: Of the prediction. If its affine is not known, voxels are taken for those of the label if shapes agree.
        target: Affine of the label.
        shape: Shape of the label, `(X, Y, Z)`.
        names: File of the prediction and file of the label, for messages.

    Returns:
        How its axes are reordered and flipped, for `nibabel.orientations.apply_orientation`; None if they stay.

    Raises:
        InputError: Their voxels do not lie at the same places.
    """
    affine, moved, turn = header.affine, header.shape, None
    if affine is not None and (header.shape != shape or grid_distance(affine, target, shape)):
        turn = axes_onto(affine, target)
        affine = affine @ inv_ornt_aff(turn, header.shape)
        moved = tuple(header.shape[axis] for axis in np.argsort(turn[:, 0]))
    if moved != shape:
        hint = ""
        if affine is None and moved[::-1] == shape:
            hint = "; its axes are in reverse order"
        elif affine is None and Path(names[0]).suffix.lower() == ".npz" and np.all(np.less_equal(moved, shape)):
            hint = CROPPED
        raise InputError(f"{names[0]}: expected shape {shape} as in {names[1]}, got {header.shape}{hint}")
    if affine is not None and (away := grid_distance(affine, target, shape)):
        raise InputError(f"{names[0]}: expected the voxels of {names[1]}, got some that lie up to {away:.3g} mm off")
    return turn
