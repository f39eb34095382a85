"""Where the voxels of two files lie in space: whether they are the same, and how to bring one array onto the other."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.affines import voxel_sizes
from numpy.typing import ArrayLike, NDArray

from calib_components.errors import InputError
from calib_components.nifti import grid_distance


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
    order, flipped = _axes(affine, target)
    moved = affine @ _reordering(order, flipped, shape)
    if tuple(shape[axis] for axis in order) != grid:
        raise InputError(f"{name}: expected shape {grid} as in {image_name}, got {shape}")
    if away := grid_distance(moved, target, grid):
        raise InputError(
            f"{name}: expected the voxels of {image_name}, got {_difference(moved, target, away)}; if the header is "
            "known to be wrong, --ignore_headers takes them for the voxels of the image"
        )
    turned = order != [0, 1, 2] or flipped != []
    array = volume.as_tensor().permute(0, *(axis + 1 for axis in order))
    return array.flip([axis + 1 for axis in flipped]).contiguous(), turned


def _axes(affine: NDArray[np.float64], target: NDArray[np.float64]) -> tuple[list[int], list[int]]:
    """Find the axis of a volume along each axis of an image, and the axes of the image that it runs against."""
    cosines = (target[:3, :3] / voxel_sizes(target)).T @ (affine[:3, :3] / voxel_sizes(affine))
    order = max(
        itertools.permutations(range(3)), key=lambda order: sum(abs(cosines[i, j]) for i, j in enumerate(order))
    )
    return list(order), [i for i, j in enumerate(order) if cosines[i, j] < 0]


def _reordering(order: list[int], flipped: list[int], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The matrix from voxel indices of the reordered and flipped array to those of the array."""
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for i, j in enumerate(order):
        matrix[j, i] = -1 if i in flipped else 1
        matrix[j, 3] = shape[j] - 1 if i in flipped else 0
    return matrix


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
