"""Bands: the voxels near the faces between voxels of different classes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch.nn import functional as F

from calib_components.errors import InputError

IGNORED = -1  # stands for the class of an ignored voxel in a map of classes


def band_mask(
    classes: torch.Tensor, radius: float, spacing: Sequence[float] | None = None
) -> torch.Tensor:
    """Find the voxels `(*S)` at most `radius` from a face between voxels of different classes
    `(*S)`.

    Exact for any spacing: the distance is from the center of a voxel to the nearest point of the
        face. A voxel of the
    class `IGNORED` has no face.
    """
    sizes = (1.0,) * classes.ndim if spacing is None else spacing
    if len(sizes) != classes.ndim:
        raise InputError(
            f"spacing must have one value for each of the {classes.ndim} spatial axes, got"
            f" {spacing}."
        )
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
    limit = radius**2 * (1 + 1e-9)  # so that rounding leaves out no voxel at exactly this distance
    for offset in itertools.product(*(range(-n, n + 1) for n in reach)):
        steps = [max(abs(n) - 0.5, 0) for n in offset]  # a face extends half a voxel
        steps[axis] = abs(offset[axis] - 0.5)
        if sum((n * size) ** 2 for n, size in zip(steps, sizes, strict=True)) <= limit:
            yield offset
