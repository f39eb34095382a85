"""The voxels near a structure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

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
    seeds, near = structure.cpu().numpy(), np.zeros(structure.shape, bool)
    reaches = [int(radius / size) + 1 for size in sizes]
    rows = max(1, SLAB // seeds[0].size)
    for start in range(0, len(seeds), rows):
        places = np.argwhere(seeds[start : start + rows])
        if len(places) > 0:
            places[:, 0] += start
            bounds = zip(places.min(0), places.max(0), reaches, strict=True)
            box = tuple(slice(max(low - n, 0), high + n + 1) for low, high, n in bounds)
            distances = distance_transform_edt(~seeds[box], sampling=sizes)
            near[box] |= distances <= radius * ROUNDING
    return torch.from_numpy(near).to(structure.device)


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
