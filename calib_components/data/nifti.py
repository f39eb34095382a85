"""NIfTI files: opening them with checks of their headers, and where their voxels lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
from monai.data import NibabelReader
from nibabel.affines import from_matvec, voxel_sizes
from nibabel.openers import ImageOpener
from nibabel.orientations import io_orientation
from nibabel.spatialimages import SpatialImage
from nibabel.volumeutils import apply_read_scaling, array_from_file

from calib_components.errors import InputError, reading

__all__ = [
    "SMALLEST_SLICE",
    "NiftiReader",
    "axes_onto",
    "check_affine",
    "check_same_grid",
    "grid_distance",
    "open_nifti",
    "read_stored",
    "read_values",
]

SMALLEST_SLICE = 4  # pixels along a side
SAME_GRID = 0.1  # of the smallest side of a voxel: headers that agree differ by far less, by rounding
SLAB = 16  # slices that are converted at once
GZIP_RATIO = 1032  # gzip makes nothing smaller by more
UNITS = {1: "metres", 3: "micrometres"}  # codes of NIfTI; 2 is millimetres, and so is 0, unknown


def open_nifti(file: str | Path, any_affine: bool = False) -> SpatialImage:
    """Open a NIfTI file and check what its header says; the voxels are not read.

    Args:
        file: The file.
        any_affine: Whether its affine does not matter.

    Raises:
        InputError: It is no NIfTI file, it is shorter than its header demands, its values are not real numbers, or its
            affine is not in millimetres, not finite or cannot be inverted.
    """
    with reading(file, "a readable NIfTI file"):
        image = cast(SpatialImage, nibabel.load(file))
        dtype, affine, proxy = image.get_data_dtype(), image.affine, cast(Any, image.dataobj)
        size = Path(file).stat().st_size
    if dtype.kind not in "iuf":
        raise InputError(f"{file}: expected one real number per voxel, got {dtype}")
    if not any_affine:
        code = int(cast(Any, image.header)["xyzt_units"]) % 8  # the other bits are the unit of time
        if code in UNITS:
            raise InputError(
                f"{file}: expected lengths in millimetres, got {UNITS[code]}, as xyzt_units in its header says; "
                "convert its affine, or set the unit to mm if it is wrong"
            )
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


def axes_onto(affine: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Find the order and directions in which the axes of a volume run along those of another one.

    Args:
        affine: Of the volume, `(4, 4)`.
        target: Of the other one.

    Returns:
        For `nibabel.orientations.apply_orientation` and `inv_ornt_aff`, `(3, 2)`: the axis of the other volume that
        each axis lies along, and 1 or, where it runs against it, -1.
    """
    return io_orientation(from_matvec(np.linalg.solve(target[:3, :3], affine[:3, :3])))


def check_same_grid(file: str | Path, other: str | Path) -> None:
    """Check that the voxels of two NIfTI files lie at the same places, by their headers.

    Args:
        file: A file, for the message.
        other: The file that it belongs to.

    Raises:
        InputError: They do not, or see `open_nifti`.
    """
    opened, expected = open_nifti(file), open_nifti(other)
    shape, grid = opened.shape[:3], expected.shape[:3]
    if shape != grid:
        raise InputError(f"{file}: expected shape {grid} as in {other}, got {shape}")
    if distance := grid_distance(opened.affine, expected.affine, grid):
        raise InputError(
            f"{file}: expected the voxels of {other}, in the same order, got others, up to {distance:.3g} mm away"
        )


def read_stored(image: SpatialImage, file: str | Path) -> np.ndarray:
    """Read the voxels of a file as they are stored, without its scale factor.

    Args:
        image: What `open_nifti` gives.
        file: The file.

    Raises:
        InputError: The file ends too early, or gzip finds that bytes have changed, which nibabel does not look for.
    """
    proxy = cast(Any, image.dataobj)
    with reading(file, "a complete NIfTI file"), ImageOpener(proxy.file_like) as opened:
        stored = array_from_file(proxy.shape, proxy.dtype, cast(Any, opened), proxy.offset)
        if str(file).lower().endswith(".gz"):
            opened.read()  # the end, where the checksum is
    return stored


def read_values(image: SpatialImage, file: str | Path) -> np.ndarray:
    """Read the voxels of a file as float32; arguments and errors are those of `read_stored`."""
    slope, inter = (np.float32(getattr(image.dataobj, name)) for name in ("slope", "inter"))
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite
        return np.asarray(apply_read_scaling(read_stored(image, file), slope, inter), np.float32)


class NiftiReader(NibabelReader):
    """MONAI's reader of NIfTI files, with `open_nifti`, with errors that name the file, and with less memory.

    Values are float32, and C-ordered. Those of a CT with a slope, which NiBabel gives in float64, would take three
    times the memory on their way there. The affine is the one that nibabel gives: MONAI's reader takes that of the
    qform, even if the header marks it as unset, where the sform has other lengths than `pixdim`.

    Args:
        any_affine: Whether the affine does not matter.
    """

    def __init__(self, any_affine: bool = False) -> None:
        super().__init__()
        self.any_affine = any_affine

    def read(self, data: Any, **_: Any) -> Any:
        """Open a file, or those of the channels of an image, whose affine is that of the first one.

        Raises:
            InputError: See `open_nifti`; or the voxels of the channels lie at other places.
        """
        files = [data] if isinstance(data, str | Path) else list(data)
        images = [open_nifti(file, self.any_affine) for file in files]
        for file in files[1:]:
            check_same_grid(file, files[0])
        self.filenames = files
        self._affine = images[0].affine
        return images if len(images) > 1 else images[0]

    def _get_affine(self, img: Any) -> np.ndarray:
        return self._affine.copy()

    def _get_array_data(self, img: Any, filename: Any) -> Any:
        proxy, stored = img.dataobj, read_stored(img, filename)
        values = np.empty(stored.shape, np.float32)
        axis = min(2, stored.ndim - 1)
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite
            for start in range(0, stored.shape[axis], SLAB):
                slab = (*[slice(None)] * axis, slice(start, start + SLAB))
                values[slab] = apply_read_scaling(stored[slab], proxy.slope, proxy.inter)
        return values
