"""Masks by distance: the voxels near the faces between voxels of different classes, or near a
structure.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.nn import functional as F

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
    sizes = _sizes(classes, spacing)
    pairs = list(zip(sizes, classes.shape, strict=True))
    reach = [int(min(radius / size + 1, length)) for size, length in pairs]
    padded = F.pad(classes, [n for n in reversed(reach) for _ in range(2)], value=IGNORED)
    # In which no step from a face leaves the padding
    strides, flat = padded.stride(), padded.flatten()
    mask = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device)
    for axis, stride in enumerate(strides):
        low, high = flat[:-stride], flat[stride:]
        faces = (low != high) & (low != IGNORED) & (high != IGNORED)  # each at the voxel below it
        for offset in _near_offsets(axis, radius, sizes, reach):
            shift = sum(n * each for n, each in zip(offset, strides, strict=True))
            start, stop = max(shift, 0), min(len(flat), len(faces) + shift)
            mask[start:stop] |= faces[start - shift : stop - shift]
    inside = [slice(n, n + length) for n, length in zip(reach, classes.shape, strict=True)]
    return mask.view(padded.shape)[tuple(inside)]


def _near_offsets(
    axis: int, radius: float, sizes: Sequence[float], reach: Sequence[int]
) -> Iterator[tuple[int, ...]]:
    """Give the offsets, from the voxel below a face along an axis, of the voxels in the band."""
    limit = radius**2 * ROUNDING
    for offset in itertools.product(*(range(-n, n + 1) for n in reach)):
        steps = [max(abs(n) - 0.5, 0) for n in offset]  # a face extends half a voxel
        steps[axis] = abs(offset[axis] - 0.5)
        if sum((n * size) ** 2 for n, size in zip(steps, sizes, strict=True)) <= limit:
            yield offset


def near_mask(
    classes: torch.Tensor, radius: float, spacing: Sequence[float] | None = None
) -> torch.Tensor:
    """Find the voxels `(*S)` at most `radius` from a voxel of a class above 0 `(*S)`, these
    included.

    Distances are those of the centers, and exact.
    """
    sizes = _sizes(classes, spacing)
    reach = int(radius * ROUNDING / sizes[0])
    rows = max(1, SLAB // classes[0].numel())
    mask = torch.zeros(classes.shape, dtype=torch.bool, device=classes.device)
    for start in range(0, len(classes), rows):
        first = max(0, start - reach)
        part = classes[first : start + rows + reach] > 0
        if part.any():
            near = _squared_distances(part, radius, sizes) <= radius**2 * ROUNDING
            mask[start : start + rows] = near[start - first : start - first + rows]
    return mask


def _squared_distances(inside: torch.Tensor, radius: float, sizes: Sequence[float]) -> torch.Tensor:
    """Return the squared distance of each voxel to the nearest one that is `inside`, axis by axis;
    infinity beyond the radius along an axis.
    """
    squared = torch.where(inside, 0.0, torch.inf)
    for axis, size in enumerate(sizes):
        nearest = squared.clone()
        length = squared.shape[axis]
        for step in range(1, min(int(radius * ROUNDING / size), length - 1) + 1):
            for target, source in ((step, 0), (0, step)):
                part = nearest.narrow(axis, target, length - step)
                other = squared.narrow(axis, source, length - step) + (step * size) ** 2
                torch.minimum(part, other, out=part)
        squared = nearest
    return squared


def _sizes(classes: torch.Tensor, spacing: Sequence[float] | None) -> Sequence[float]:
    """Return the size of a voxel along each axis."""
    sizes = (1.0,) * classes.ndim if spacing is None else spacing
    if len(sizes) != classes.ndim:
        raise InputError(
            f"spacing must have one value for each of the {classes.ndim} spatial axes, got"
            f" {spacing}."
        )
    return sizes
