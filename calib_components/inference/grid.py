"""The way back from the network's grid to that of the image, a slab of slices at a time.

All that brings an image to the network's grid moves its axes one by one: reorientation, cropping,
padding, resizing. MONAI's `Invertd` undoes it with whole volumes in memory. Here each axis of the
image has its own steps back, so that a slab needs no more of the network's volume than the slices
that its own follow from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor

from calib_components.data.nifti import axes_onto
from calib_components.errors import InputError

Step = Callable[[torch.Tensor, int], torch.Tensor]  # of images `(*, *, H, W)`, along -2 or -1


class _Axis(NamedTuple):
    """An axis of the image: the axis of the network's grid that it lies along, and the steps back
    from there.
    """

    source: int
    steps: tuple[Step, ...] = ()

    def then(self, step: Step) -> _Axis:
        return _Axis(self.source, (*self.steps, step))

    def apply(self, images: torch.Tensor, dim: int) -> torch.Tensor:
        for step in self.steps:
            images = step(images, dim)
        return images


Axes = list[_Axis]
LINEAR = ("linear", "bilinear", "trilinear")


class ImageGrid:
    """The grid of an image, as the file has it.

    Args:
        image: The preprocessed image `(C, H, W, D)`, with MONAI's record of what was done to it.

    Raises:
        InputError: Something else was done than reorientation, cropping, padding, linear resizing
            and, before that, resampling to another spacing.

    Attributes:
        shape: Number of voxels along each axis.
        affine: `(4, 4)`, from voxel indices to millimetres.
    """

    def __init__(self, image: MetaTensor) -> None:
        self._axes = [_Axis(0), _Axis(1), _Axis(2)]
        affine = image.affine.numpy()
        for operation in reversed(image.applied_operations):
            self._axes, affine = _undo(operation, self._axes, affine)
        self.affine = np.asarray(image.meta["original_affine"])
        # Weights `(own, network)` of the network's slices in each slice.
        lengths = [image.shape[1 + axis.source] for axis in self._axes]
        weights = [
            axis.apply(torch.eye(n)[None, None], -2)[0, 0]
            for axis, n in zip(self._axes, lengths, strict=True)
        ]
        self.shape = tuple(map(len, weights))
        self._weights = weights[2]

    def slab(
        self,
        volume: torch.Tensor,
        start: int,
        stop: int,
        function: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """Bring the slab from `start` to `stop` along the third axis of this grid here.

        Args:
            volume: On the network's grid, `(N, H, W, D)`.
            start: First voxel.
            stop: End of the slab.
            function: What is done first to the part of the volume that the slab needs, `(N, *S)`.

        Returns:
            `(N, stop - start, Y, X)`, the order of a NIfTI file; 0 where the network saw nothing.
        """
        x, y, z = self._axes
        weights = self._weights[start:stop]
        used = weights.any(0).nonzero().flatten().tolist() or [0]
        first, last = used[0], used[-1] + 1
        part = volume.narrow(1 + z.source, first, last - first)
        part = function(part.permute(0, *(1 + axis.source for axis in (z, y, x))).contiguous())
        weights = weights[:, first:last].to(part)
        if not torch.equal(weights, torch.eye(len(weights)).to(weights)):
            part = torch.einsum("ij,njhw->nihw", weights, part)
        return x.apply(y.apply(part, -2), -1)


def _undo(operation: Mapping[str, Any], axes: Axes, affine: np.ndarray) -> tuple[Axes, np.ndarray]:
    """Return the axes before an operation was done, and an affine whose axes point where theirs do."""
    name, info = operation["class"], operation["extra_info"]
    if "pad_info" in info:  # of a crop that also padded
        axes, affine = _undo(info["pad_info"], axes, affine)
    if "cropped" in info:
        return _then(axes, _pad, np.reshape(info["cropped"], (-1, 2)).tolist()), affine
    if "padded" in info:  # those of channels come first
        return _then(axes, _crop, np.reshape(info["padded"], (-1, 2))[1:].tolist()), affine
    if name in UNDO and info.get("mode", LINEAR[0]) in LINEAR:
        return UNDO[name](operation, axes, affine)
    known = "reorientation, crops, padding, linear resizing and resampling"
    raise InputError(
        f"volume_transforms: {name} cannot be undone along the axes of an image. Use {known}."
    )


def _then(axes: Axes, step: Callable[..., Step], arguments: Sequence[Sequence[Any]]) -> Axes:
    """Return the axes with a further step each, where one of its arguments is not 0."""
    return [
        axis.then(step(*values)) if any(values) else axis
        for axis, values in zip(axes, arguments, strict=True)
    ]


def _undo_resize(
    operation: Mapping[str, Any], axes: Axes, affine: np.ndarray
) -> tuple[Axes, np.ndarray]:
    is_aligned = operation["extra_info"]["align_corners"] is True
    lengths = [(int(length), is_aligned) for length in operation["orig_size"]]
    return _then(axes, _resize, lengths), affine


def _undo_resampling(
    operation: Mapping[str, Any], axes: Axes, affine: np.ndarray
) -> tuple[Axes, np.ndarray]:
    before = np.asarray(operation["extra_info"]["src_affine"])
    ratios = (np.linalg.norm(before, axis=0) / np.linalg.norm(affine, axis=0))[:3].tolist()
    lengths = [int(length) for length in operation["orig_size"]]
    return _then(axes, _sample, [*zip(lengths, ratios, strict=True)]), before


def _undo_slices_last(
    operation: Mapping[str, Any], axes: Axes, affine: np.ndarray
) -> tuple[Axes, np.ndarray]:
    order = [0, 1]
    order.insert(operation["extra_info"]["axis"], 2)
    return [axes[axis] for axis in order], affine[:, [*order, 3]]


def _undo_orientation(
    operation: Mapping[str, Any], axes: Axes, affine: np.ndarray
) -> tuple[Axes, np.ndarray]:
    before = np.asarray(operation["extra_info"]["original_affine"])
    places, flips = axes_onto(affine, before).T.tolist()
    turned = [
        axis if flip == 1 else axis.then(torch.Tensor.flip)
        for axis, flip in zip(axes, flips, strict=True)
    ]
    return [turned[places.index(axis)] for axis in range(3)], before


# By the class of the transform
UNDO = {
    "Resize": _undo_resize,
    "SpatialResample": _undo_resampling,
    "SlicesLastd": _undo_slices_last,
    "Orientation": _undo_orientation,
}


def _pad(before: int, after: int) -> Step:
    margins = {-1: (before, after), -2: (0, 0, before, after)}
    return lambda images, dim: F.pad(images, margins[dim])


def _crop(before: int, after: int) -> Step:
    return lambda images, dim: images.narrow(dim, before, images.shape[dim] - before - after)


def _resize(length: int, align_corners: bool) -> Step:
    def step(images: torch.Tensor, dim: int) -> torch.Tensor:
        size = list(images.shape[-2:])
        if size[dim] == length:
            return images
        size[dim] = length
        return F.interpolate(images, size, mode="bilinear", align_corners=align_corners)

    return step


def _sample(length: int, ratio: float) -> Step:
    """Interpolate at so many positions, one every `ratio` voxels from the first."""

    def step(images: torch.Tensor, dim: int) -> torch.Tensor:
        last = images.shape[dim] - 1
        places = (torch.arange(length, dtype=torch.float64) * ratio).clamp(max=last)
        first = places.floor().long()
        share = (places - first).to(images)
        if dim == -2:
            share = share[:, None]
        low = images.index_select(dim, first)
        high = images.index_select(dim, (first + 1).clamp(max=last))
        return low.lerp(high, share)

    return step
