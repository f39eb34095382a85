"""NIfTI files: opening them with checks of their headers, and where their voxels lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
from monai.data import NibabelReader
from nibabel.affines import voxel_sizes
from nibabel.openers import ImageOpener
from nibabel.spatialimages import SpatialImage
from nibabel.volumeutils import apply_read_scaling, array_from_file

from calib_components.errors import InputError, reading

__all__ = ["SMALLEST_SLICE", "NiftiReader", "check_affine", "grid_distance", "open_nifti"]

SMALLEST_SLICE = 4  # pixels along a side
SAME_GRID = 0.1  # of the smallest side of a voxel: headers that agree differ by far less, by rounding
SLAB = 16  # slices that are converted at once
GZIP_RATIO = 1032  # gzip makes nothing smaller by more


def open_nifti(file: str | Path, any_affine: bool = False) -> SpatialImage:
    """Open a NIfTI file and check what its header says; the voxels are not read.

    Args:
        file: The file.
        any_affine: Whether its affine does not matter.

    Raises:
        InputError: It is no NIfTI file, it is shorter than its header demands, its values are not real numbers, or its
            affine is not finite or cannot be inverted.
    """
    with reading(file, "a readable NIfTI file"):
        image = cast(SpatialImage, nibabel.load(file))
        dtype, affine, proxy = image.get_data_dtype(), image.affine, cast(Any, image.dataobj)
        size = Path(file).stat().st_size
    if dtype.kind not in "iuf":
        raise InputError(f"{file}: expected one real number per voxel, got {dtype}")
    if not any_affine:
        check_affine(affine, file)
    demanded = proxy.offset + dtype.itemsize * int(np.prod(image.shape, dtype=np.int64))
    if size * (1 if Path(file).suffix.lower() == ".nii" else GZIP_RATIO) < demanded:
        raise InputError(f"{file}: expected {demanded} bytes, as its header demands, got {size}; it is truncated")
    return image


def check_affine(affine: np.ndarray, file: str | Path) -> None:
    """Check that an affine `(4, 4)` is finite and can be inverted.

    Raises:
        InputError: It is not; the message names the file.
    """
    got = affine[:3].round(3).tolist()
    if not np.isfinite(affine).all():
        raise InputError(f"{file}: expected an affine of finite numbers, got {got}")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if lengths.min() == 0 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        raise InputError(f"{file}: expected an affine whose three axes differ in direction, got {got}")


def grid_distance(affine: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
    """Return how far apart the voxels of two volumes of one shape lie.

    Args:
        affine: Of one volume, `(4, 4)`.
        other: Of the volume that it belongs to.
        shape: Number of voxels along each axis.

    Returns:
        The largest distance of two corners, in millimetres; 0 if it is no more than a tenth of the smallest side of a
        voxel, as it is where headers agree but for rounding.
    """
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape[:3]) - 1)
    difference = affine - other
    distance = np.linalg.norm(corners @ difference[:3, :3].T + difference[:3, 3], axis=1).max()
    return 0.0 if distance <= SAME_GRID * voxel_sizes(other).min() else float(distance)


class NiftiReader(NibabelReader):
    """MONAI's reader of NIfTI files, with `open_nifti`, with errors that name the file, and with less memory.

    Values are float32, and C-ordered. Those of a CT with a slope, which NiBabel gives in float64, would take three
    times the memory on their way there.
    """

    def read(self, data: Any, **kwargs: Any) -> Any:
        for file in [data] if isinstance(data, str | Path) else data:
            open_nifti(file)
        return super().read(data, **kwargs)

    def _get_array_data(self, img: Any, filename: Any) -> Any:
        proxy = img.dataobj
        with reading(filename, "a complete NIfTI file"), ImageOpener(proxy.file_like) as file:
            stored = array_from_file(proxy.shape, proxy.dtype, cast(Any, file), proxy.offset)
            if str(filename).lower().endswith(".gz"):
                file.read()  # the end, where gzip finds that bytes have changed
        values = np.empty(stored.shape, np.float32)
        axis = min(2, stored.ndim - 1)
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite
            for start in range(0, stored.shape[axis], SLAB):
                slab = (*[slice(None)] * axis, slice(start, start + SLAB))
                values[slab] = apply_read_scaling(stored[slab], proxy.slope, proxy.inter)
        return values
