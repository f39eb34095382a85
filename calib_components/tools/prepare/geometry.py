"""Where the voxels of two files lie in space: whether they are the same, and how to bring one array onto the other."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff
from numpy.typing import ArrayLike, NDArray

from calib_components.data.nifti import axes_onto, grid_distance
from calib_components.errors import InputError

UNTURNED = np.array([[0, 1], [1, 1], [2, 1]])


def onto(volume: MetaTensor, name: object, image: MetaTensor, image_name: object) -> tuple[torch.Tensor, bool]:
    """Bring a volume onto the voxels of an image, without interpolation: its axes are reordered and flipped if needed.

    Args:
        volume: `(C, H, W, D)`, with the affine of its file.
        name: Its file, for messages.
        image: `(C, H, W, D)`, with the affine of its file.
        image_name: Its file, for messages.

    Returns:
        The volume on the voxels of the image, and whether it had to be reordered or flipped.

    Raises:
        InputError: Their voxels do not lie at the same places.
    """
    shape, grid = tuple(volume.shape[1:]), tuple(image.shape[1:])
    affine, target = np.asarray(volume.affine, float), np.asarray(image.affine, float)
    turn = axes_onto(affine, target)
    moved = affine @ inv_ornt_aff(turn, shape)
    if tuple(shape[axis] for axis in np.argsort(turn[:, 0])) != grid:
        raise InputError(f"{name}: expected shape {grid} as in {image_name}, got {shape}")
    if away := grid_distance(moved, target, grid):
        raise InputError(
            f"{name}: expected the voxels of {image_name}, got {_difference(moved, target, away)}; if the header is "
            "known to be wrong, --ignore_headers takes them for the voxels of the image"
        )
    turned = apply_orientation(volume.as_tensor().movedim(0, -1).numpy(), turn)
    array = torch.from_numpy(np.ascontiguousarray(np.moveaxis(turned, -1, 0)))
    return array, not np.array_equal(turn, UNTURNED)


def _difference(affine: NDArray[np.float64], target: NDArray[np.float64], away: float) -> str:
    """Say in what an affine differs from that of the image."""
    sizes, expected = voxel_sizes(affine), voxel_sizes(target)
    if not np.allclose(sizes, expected, rtol=1e-3):
        return f"voxels of {_mm(sizes)} instead of {_mm(expected)} mm"
    cosines = np.sum(affine[:3, :3] / sizes * (target[:3, :3] / expected), axis=0)
    if (degrees := np.degrees(np.arccos(np.clip(cosines.min(), -1, 1)))) > 0.1:
        return f"axes turned by {degrees:.1f} degrees"
    return f"voxels that lie {away:.3g} mm off"


def _mm(sizes: ArrayLike) -> str:
    return " x ".join(f"{size:.4g}" for size in np.asarray(sizes))
