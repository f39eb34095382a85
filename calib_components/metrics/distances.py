"""The voxels near a structure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from calib_components.errors import InputError

SLAB = 2**22  # voxels whose distances are in memory
ROUNDING = 1 + 1e-6  # leaves out no voxel at exactly the radius


def near_mask(
    structure: torch.Tensor, radius: float, spacing: Sequence[float] | None = None
) -> torch.Tensor:
    """Find the voxels `(*S)` at most `radius` from a voxel of a mask `(*S)`, these included.

    Distances are those of the centers, and exact.
    """
    sizes = voxel_sizes(spacing, structure.ndim)
    reaches = [int(radius / size) + 1 for size in sizes]
    rows = max(1, SLAB // structure[0].numel())
    mask = torch.zeros_like(structure)
    for start in range(0, len(structure), rows):
        index = structure[start : start + rows].nonzero()
        if len(index) > 0:
            index[:, 0] += start
            bounds = zip(index.amin(0).tolist(), index.amax(0).tolist(), reaches, strict=True)
            box = tuple(slice(max(low - n, 0), high + n + 1) for low, high, n in bounds)
            squared = _squared_distances(structure[box], radius, sizes)
            mask[box] |= squared <= radius**2 * ROUNDING
    return mask


def _squared_distances(seeds: torch.Tensor, radius: float, sizes: Sequence[float]) -> torch.Tensor:
    """Return the squared distance of each voxel to the nearest seed, axis by axis; infinity beyond
    the radius along an axis.
    """
    squared = torch.where(seeds, 0.0, torch.inf)
    for axis, (size, length) in enumerate(zip(sizes, seeds.shape, strict=True)):
        nearest = torch.full_like(squared, torch.inf)
        reach = min(int(radius / size) + 1, length - 1)
        for step in range(-reach, reach + 1):
            target = nearest.narrow(axis, max(step, 0), length - abs(step))
            source = squared.narrow(axis, max(-step, 0), length - abs(step))
            torch.minimum(target, source + (step * size) ** 2, out=target)
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
