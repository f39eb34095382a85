"""The way back from the network's grid to that of the image, a slab of slices at a time.

All that brings an image to the network's grid moves its axes one by one: reorientation, cropping,
padding, resizing. MONAI's `Invertd` undoes it with whole volumes in memory. Here each axis of the
image knows where its voxels lie on the network's grid, so that a slab needs no more of the
network's volume than the slices that its own follow from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.affines import voxel_sizes

from calib_components.data.nifti import axes_onto
from calib_components.errors import InputError

LINEAR = ("linear", "bilinear", "trilinear")


@dataclass(frozen=True)
class Axis:
    """An axis of the image.

    Attributes:
        source: Axis of the network's grid that it lies along.
        voxels: Where each of its voxels lies along that axis, in voxels of the network's grid; and
            1 if the network saw it, else 0, between them if that was interpolated: `(2, n)`.
    """

    source: int
    voxels: np.ndarray

    def take(self, part: slice) -> Axis:
        """Return a part of the axis."""
        return Axis(self.source, self.voxels[:, part].copy())

    def crop(self, before: int, after: int) -> Axis:
        """Return the axis without its ends."""
        return self.take(slice(before, self.voxels.shape[1] - after))

    def turn(self, direction: int) -> Axis:
        """Return the axis in its direction, 1, or the other one, -1."""
        return self.take(slice(None, None, direction))

    def pad(self, before: int, after: int) -> Axis:
        """Return the axis with further voxels at its ends, which the network did not see."""
        padded = np.pad(self.voxels, ((0, 0), (before, after)), "edge")
        padded[1] = np.pad(self.voxels[1], (before, after))
        return Axis(self.source, padded)

    def interpolate(self, places: np.ndarray) -> Axis:
        """Return the axis at places between its voxels; beyond, its end counts."""
        known = np.arange(self.voxels.shape[1])
        return Axis(self.source, np.stack([np.interp(places, known, row) for row in self.voxels]))

    def resize(self, length: int) -> Axis:
        """Return the axis with so many voxels in the same field of view."""
        return self.interpolate(
            (np.arange(length) + 0.5) * self.voxels.shape[1] / int(length) - 0.5
        )

    def resample(self, length: int, ratio: float) -> Axis:
        """Return the axis with so many voxels, one every `ratio` voxels from the first."""
        return self.interpolate(np.arange(length) * ratio)

    def sample(self, volume: torch.Tensor, dim: int) -> torch.Tensor:
        """Return a volume with the voxels of this axis along `dim`, which is its source."""
        places, seen = torch.from_numpy(self.voxels)
        length = volume.shape[dim]
        if torch.equal(places, torch.arange(length, dtype=places.dtype)) and seen.all():
            return volume
        first = places.long()
        column = [-1] + [1] * (volume.ndim - 1 - dim)
        share, seen = ((places - first).to(volume).view(column), seen.to(volume).view(column))
        low = volume.index_select(dim, first)
        high = volume.index_select(dim, (first + 1).clamp(max=length - 1))
        return low.lerp_(high, share).mul_(seen)


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
        self._axes = [
            Axis(source, np.stack([np.arange(length, dtype=float), np.ones(length)]))
            for source, length in enumerate(image.shape[1:])
        ]
        affine = image.affine.numpy()
        for operation in reversed(image.applied_operations):
            self._axes, affine = _undo(operation, self._axes, affine)
        self.affine = np.asarray(image.meta["original_affine"])
        self.shape = tuple(axis.voxels.shape[1] for axis in self._axes)

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
        z = z.take(slice(start, stop))
        first, last = int(z.voxels[0].min()), int(np.ceil(z.voxels[0].max()))
        part = volume.narrow(1 + z.source, first, last + 1 - first)
        part = function(part.permute(0, *(1 + axis.source for axis in (z, y, x))).contiguous())
        part = Axis(z.source, z.voxels - [[first], [0]]).sample(part, 1)
        return x.sample(y.sample(part, 2), 3)


def _undo(
    operation: Mapping[str, Any], axes: list[Axis], affine: np.ndarray
) -> tuple[list[Axis], np.ndarray]:
    """Return the axes before an operation was done, and an affine whose axes point where theirs do."""
    name, info = operation["class"], operation["extra_info"]
    if "pad_info" in info:  # of a crop that also padded
        axes, affine = _undo(info["pad_info"], axes, affine)
    if "cropped" in info:
        margins = np.reshape(info["cropped"], (-1, 2))
        return [*map(Axis.pad, axes, *margins.T)], affine
    if "padded" in info:  # those of channels come first
        margins = np.reshape(info["padded"], (-1, 2))[1:]
        return [*map(Axis.crop, axes, *margins.T)], affine
    if name == "Orientation":
        before = np.asarray(info["original_affine"])
        places, flips = axes_onto(affine, before).T.astype(int)
        turned = [*map(Axis.turn, axes, flips)]
        return [turned[axis] for axis in places.argsort()], before
    is_linear = info.get("mode") in LINEAR and info.get("align_corners") is not True
    if name == "Resize" and is_linear:
        return [*map(Axis.resize, axes, operation["orig_size"])], affine
    if name == "SpatialResample" and is_linear:
        before = np.asarray(info["src_affine"])
        ratios = voxel_sizes(before) / voxel_sizes(affine)
        return [*map(Axis.resample, axes, operation["orig_size"], ratios)], before
    known = "reorientation, crops, padding, linear resizing and resampling"
    raise InputError(
        f"volume_transforms: {name} cannot be undone along the axes of an image. Use {known}."
    )
