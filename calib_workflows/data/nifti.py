"""NIfTI files: opening them with checks of their headers, and where their voxels lie."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import nibabel
import numpy as np
import torch
from monai.data import NibabelReader
from monai.utils import ensure_tuple
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from nibabel.arrayproxy import is_proxy
from nibabel.openers import ImageOpener
from nibabel.orientations import inv_ornt_aff, io_orientation
from nibabel.spatialimages import SpatialImage
from nibabel.volumeutils import apply_read_scaling, array_from_file

from calib_components.errors import InputError, reading
from calib_workflows.data.dicom import is_dicom, open_series

SAME_GRID = 0.1  # of the smallest side of a voxel; rounding of headers moves voxels by far less
SLAB = 16  # slices that are converted at once
SINGULAR = 1e6  # condition number of an affine; that of the thinnest voxels is below 1e3
CHUNK = 2**24  # bytes of a file that are read past at once
PHASE = re.compile(r"(.+)_phase(\d+)(\.nii(?:\.gz)?)", re.IGNORECASE | re.DOTALL)
CUBIC_MM = 1000  # in a millilitre
UNITS = {1: "metres", 3: "micrometres"}  # codes of NIfTI; 2 is millimetres, and so is 0, unknown


def stored_in(file: str | os.PathLike) -> tuple[Path, int | None]:
    """Return the file that holds an image, and which of its phases the image is: phase 3 of
    `NAME.nii.gz`, whose fourth axis is time, is called `NAME_phase03.nii.gz`. None for a whole
    file.
    """
    file = Path(file)
    match = PHASE.fullmatch(file.name)
    if match is None or file.exists():
        return file, None
    return file.with_name(match[1] + match[3]), int(match[2])


def open_nifti(file: str | os.PathLike) -> SpatialImage:
    """Open a NIfTI file, a phase of one, see `stored_in`, or a DICOM series, see `open_series`, and
    check its header. The voxels are not read. Of five axes, those of length 1 are dropped.

    Raises:
        InputError: The file is not NIfTI, is shorter than its header demands, or holds other values
            than real numbers; or its affine is not in millimetres, not finite or singular.
    """
    place, phase = stored_in(file)
    if is_dicom(place):
        series = open_series(place)
        check_affine(series.affine, file)
        return series
    with reading(file):
        image: Any = nibabel.load(place)
        dtype, affine, size = image.get_data_dtype(), image.affine, os.path.getsize(place)
    if dtype.kind not in "iuf":
        raise InputError(
            f"{file}: values are of type {dtype}. Convert them to one real number per voxel."
        )
    code = int(image.header["xyzt_units"]) % 8  # the other bits are the unit of time
    if code in UNITS:
        raise InputError(
            f"{file}: the header states lengths in {UNITS[code]}. Convert the affine to"
            " millimetres, or correct xyzt_units."
        )
    check_affine(affine, file)
    demanded = image.dataobj.offset + dtype.itemsize * math.prod(image.shape)
    # The end of a compressed file is found when it is read
    if size < demanded and str(file).lower().endswith(".nii"):
        raise InputError(f"{file}: file is truncated, {size} of {demanded} bytes. Copy it again.")
    if len(image.shape) > 4:  # such as (X, Y, Z, 1, C), with an axis of time
        shape = (*image.shape[:3], *(length for length in image.shape[3:] if length > 1))
        with reading(file):
            image = type(image)(image.dataobj.reshape(shape), affine, image.header)
    return image if phase is None else _take_phase(image, phase, file)


def _take_phase(image: Any, phase: int, file: str | os.PathLike) -> SpatialImage:
    """Return the 3D image of a phase, whose voxels lie together in the file and are read alone."""
    proxy, shape = image.dataobj, image.shape[:3]
    with reading(file, f"phase {phase} of an image of shape {image.shape}"):
        _, _, _, phases = image.shape
        if phase >= phases:
            raise ValueError(f"it has {phases}")
        offset = proxy.offset + phase * math.prod(shape) * proxy.dtype.itemsize
        part = (shape, proxy.dtype, offset, proxy.slope, proxy.inter)
        return type(image)(type(proxy)(proxy.file_like, part), image.affine, image.header)


def check_affine(affine: np.ndarray, file: str | os.PathLike) -> None:
    """Raise an `InputError` that names the file unless an affine `(4, 4)` is finite and
    invertible.
    """
    is_finite = np.isfinite(affine).all()
    if not is_finite or np.linalg.cond(affine[:3, :3]) > SINGULAR:
        rows = affine[:3].round(3).tolist()
        raise InputError(f"{file}: affine is {'singular' if is_finite else 'not finite'}: {rows}.")


def voxel_volume(affine: np.ndarray) -> float:
    """Return the volume of a voxel in ml, from the affine `(4, 4)` to millimetres."""
    return float(abs(np.linalg.det(affine[:3, :3])) / CUBIC_MM)


def grid_distance(affine: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
    """Return how far apart the voxels of two volumes of one shape lie, from the affines `(4, 4)` of
    both.

    This is the largest distance between corresponding corners in millimetres. Distances up to a
    tenth of the smallest side of a voxel of the other count as 0, since headers are rounded.
    """
    last = np.array(shape[:3]) - 1
    corners = np.array([*np.ndindex(2, 2, 2)]) * last
    apart = apply_affine(affine - other, corners)
    distance = np.linalg.norm(apart, axis=1).max()
    return 0.0 if distance <= SAME_GRID * voxel_sizes(other).min() else float(distance)


def axes_onto(affine: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the orientation `(3, 2)`, see `nibabel.orientations`, of a volume to a target, from
    the affines of both.

    It states for each axis the axis of the target along which it lies, and its direction, 1 or -1.
    """
    return io_orientation(from_matvec(np.linalg.solve(target[:3, :3], affine[:3, :3])))


class Grid(NamedTuple):
    """Where the voxels of a volume lie: its affine `(4, 4)` and its shape; and what messages call
    it.
    """

    affine: np.ndarray
    shape: tuple[int, ...]
    name: object


def open_together(files: Sequence[str | os.PathLike]) -> list[SpatialImage]:
    """Open files, see `open_nifti`, whose voxels must be those of the first one, or raise an
    `InputError` that names one of other shape or affine.
    """
    images = [open_nifti(file) for file in files]
    first, *others = (
        Grid(image.affine, image.shape[:3], file) for image, file in zip(images, files, strict=True)
    )
    for grid in others:
        _check_grids(grid, first)
    return images


def open_channels(files: Sequence[str | os.PathLike]) -> list[SpatialImage]:
    """Open the files of an image's channels, see `open_nifti`, with axes in the order and direction
    of the first one's, or raise an `InputError` that names one whose voxels lie elsewhere.
    """
    images = [open_nifti(file) for file in files]
    if len(images) == 1:
        return images
    grids = [
        Grid(image.affine, image.shape[:3], file) for image, file in zip(images, files, strict=True)
    ]
    turns = [turn_onto(grid, grids[0]) for grid in grids]
    return [
        image if turn is None else image.as_reoriented(turn.tolist())
        for image, turn in zip(images, turns, strict=True)
    ]


def turn_onto(grid: Grid, target: Grid) -> np.ndarray | None:
    """Return how to reorder and flip the axes of a volume to have the voxels of another; None if it
    has them.

    Raises `InputError` if they lie at other places.
    """
    if grid.shape == target.shape and not grid_distance(grid.affine, target.affine, grid.shape):
        return None
    turn = axes_onto(grid.affine, target.affine)
    shape = tuple(grid.shape[axis] for axis in np.argsort(turn[:, 0]))
    turned = Grid(grid.affine @ inv_ornt_aff(turn, grid.shape), shape, grid.name)
    _check_grids(turned, target)
    return turn


def _check_grids(grid: Grid, target: Grid) -> None:
    if grid.shape != target.shape:
        raise InputError(
            f"{grid.name}: shape {grid.shape} differs from {target.shape} of {target.name}."
        )
    distance = grid_distance(grid.affine, target.affine, grid.shape)
    if distance:
        raise InputError(
            f"{grid.name}: affine differs from that of {target.name} by up to {distance:.3g} mm."
            f" Resample one to the grid of the other."
        )


def read_values(
    image: SpatialImage, file: str | os.PathLike, nan_to_num: bool = False
) -> np.ndarray:
    """Read the voxels of a file of three axes or more, opened by `open_nifti`, as float32,
    C-ordered, and on request NaN as 0.

    Values beyond the range of float32 become infinite. Slabs are converted one at a time, since
    nibabel makes float64 of integers with a scale factor.

    Raises:
        InputError: The file is truncated, or the checksum of gzip is wrong, which nibabel does not
            verify.
    """
    proxy: Any = image.dataobj
    if not is_proxy(proxy):  # DICOM
        return np.ascontiguousarray(proxy, np.float32)
    with reading(file), ImageOpener(proxy.file_like) as opened:
        stored = array_from_file(proxy.shape, proxy.dtype, cast(Any, opened), proxy.offset)
        if str(file).lower().endswith(".gz"):
            while opened.read(CHUNK):  # the checksum is at the end
                pass
    values = np.empty(stored.shape, np.float32)
    with np.errstate(over="ignore"):
        for start in range(0, stored.shape[2], SLAB):
            slab = values[:, :, start : start + SLAB]
            part = stored[:, :, start : start + SLAB]
            slab[...] = apply_read_scaling(part, proxy.slope, proxy.inter)
            if nan_to_num:
                slab[np.isnan(slab)] = 0
    return values


def channels_last(volume: torch.Tensor) -> np.ndarray:
    """Return a volume `(C, *S)` as a NIfTI file has it: `(*S, C)`, or `(*S)` of one channel."""
    return volume[0].numpy() if len(volume) == 1 else volume.movedim(0, -1).numpy()


class NiftiReader(NibabelReader):
    """MONAI's reader of NIfTI files with the checks of `open_nifti`; values are those of
    `read_values`.

    The affine is that of nibabel. MONAI's reader takes the affine of the qform even where the
    header marks it as unset. Files of several channels are read by `open_channels`.
    """

    def __init__(self, nan_to_num: bool = False) -> None:
        super().__init__()
        self.nan_to_num = nan_to_num

    def verify_suffix(self, filename: Any) -> bool:
        """Return whether these are NIfTI files by their ending, or DICOM, which may have any."""
        is_series = all(is_dicom(file) for file in ensure_tuple(filename))
        return is_series or bool(super().verify_suffix(filename))

    def read(self, data: Any, **_: Any) -> Any:
        """Open a file, or those of the channels of an image, whose affine is that of the first
        one.
        """
        self.filenames = [*ensure_tuple(data)]
        images = open_channels(self.filenames)
        self._affine = images[0].affine
        return images if len(images) > 1 else images[0]

    def _get_affine(self, img: Any) -> np.ndarray:
        return self._affine.copy()

    def _get_array_data(self, img: Any, filename: Any) -> Any:
        return read_values(img, filename, self.nan_to_num)
