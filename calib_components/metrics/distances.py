"""Masks by distance: the voxels near the faces between voxels of different classes, or near a
structure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from calib_components.errors import InputError

IGNORED = -1  # stands for the class of an ignored voxel in a map of classes
SLAB = 2**22  # voxels whose distances are in memory
ROUNDING = 1 + 1e-6  # leaves out no voxel at exactly the radius
# Of a map of classes, a radius and a spacing
Mask = Callable[[torch.Tensor, float, Sequence[float] | None], torch.Tensor]


def band_mask(
    classes: torch.Tensor, radius: float, spacing: Sequence[float] | None = None
) -> torch.Tensor:
    """Find the voxels `(*S)` at most `radius` from a face between voxels of different classes
    `(*S)`.

    Exact for any spacing: the distance is from the center of a voxel to the nearest point of the
    face. A voxel of the class `IGNORED` has no face.
    """
    mask = torch.zeros_like(classes, dtype=torch.bool)
    for axis, length in enumerate(classes.shape):
        low, high = (classes.narrow(axis, start, length - 1) for start in (0, 1))
        faces = torch.zeros_like(mask)  # each at the voxel below it
        faces.narrow(axis, 0, length - 1)[:] = (low != high) & (low != IGNORED) & (high != IGNORED)
        mask |= _near(faces, radius, spacing, axis)
    return mask


def near_mask(
    classes: torch.Tensor, radius: float, spacing: Sequence[float] | None = None
) -> torch.Tensor:
    """Find the voxels `(*S)` at most `radius` from a voxel of a class above 0 `(*S)`, these
    included.

    Distances are those of the centers, and exact.
    """
    return _near(classes > 0, radius, spacing)


def _near(
    seeds: torch.Tensor,
    radius: float,
    spacing: Sequence[float] | None,
    face_axis: int | None = None,
) -> torch.Tensor:
    """Find the voxels at most `radius` from the center of a seed, or from the face above it along
    an axis.
    """
    sizes = voxel_sizes(spacing, seeds.ndim)
    reaches = [int(radius / size) + 1 for size in sizes]
    rows = max(1, SLAB // seeds[0].numel())
    mask = torch.zeros_like(seeds)
    for start in range(0, len(seeds), rows):
        index = seeds[start : start + rows].nonzero()
        if len(index) > 0:
            index[:, 0] += start
            bounds = zip(index.amin(0).tolist(), index.amax(0).tolist(), reaches, strict=True)
            box = tuple(slice(max(low - n, 0), high + n + 1) for low, high, n in bounds)
            squared = _squared_distances(seeds[box], radius, sizes, face_axis)
            mask[box] |= squared <= radius**2 * ROUNDING
    return mask


def _squared_distances(
    seeds: torch.Tensor, radius: float, sizes: Sequence[float], face_axis: int | None
) -> torch.Tensor:
    """Return the squared distance of each voxel to the nearest seed or face, axis by axis; infinity
    beyond the radius along an axis.
    """
    squared = torch.where(seeds, 0.0, torch.inf)
    for axis, (size, length) in enumerate(zip(sizes, seeds.shape, strict=True)):
        nearest = torch.full_like(squared, torch.inf)
        reach = min(int(radius / size) + 1, length - 1)
        for step in range(-reach, reach + 1):
            gap = float(abs(step))
            if face_axis is not None:  # a face extends half a voxel along the other axes
                gap = abs(step - 0.5) if axis == face_axis else max(gap - 0.5, 0)
            target = nearest.narrow(axis, max(step, 0), length - abs(step))
            source = squared.narrow(axis, max(-step, 0), length - abs(step))
            torch.minimum(target, source + (gap * size) ** 2, out=target)
        squared = nearest
    return squared


def voxel_sizes(spacing: Sequence[float] | None, axes: int) -> list[float]:
    """Return the size of a voxel along each spatial axis, 1 without a spacing; raise `InputError`
    unless there is one above 0 for each.
    """
    sizes = np.atleast_1d(np.ones(axes) if spacing is None else spacing).tolist()
    if len(sizes) != axes or not all(0 < size < math.inf for size in sizes):
        raise InputError(
            f"spacing must have a positive number for each of {axes} spatial axes, got {spacing}."
        )
    return sizes
