"""The way back from the network's grid to that of the image, a slab of slices at a time.

All that brings an image to the network's grid moves its axes one by one: reorientation, cropping,
padding, resizing. MONAI's `Invertd` undoes it with whole volumes in memory. Here each axis of the
image has the weights of the network's voxels in its own, so that a slab needs no more of the
network's volume than the slices that its own follow from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from nibabel.affines import voxel_sizes

from calib_components.errors import InputError
from calib_workflows.data.nifti import axes_onto

LINEAR = ("linear", "bilinear", "trilinear")


class Axis(NamedTuple):
    """An axis of the image: the axis of the network's grid that it lies along, `source`, and the
    weights of the network's voxels in each of its own, `(own, network)`, 0 where it saw nothing.
    """

    source: int
    weights: torch.Tensor

    def crop(self, before: int, after: int) -> Axis:
        """Return the axis without its ends."""
        return Axis(self.source, self.weights[before : len(self.weights) - after])

    def pad(self, before: int, after: int) -> Axis:
        """Return the axis with further voxels at its ends, which the network did not see."""
        return Axis(self.source, F.pad(self.weights, (0, 0, before, after)))

    def turn(self, direction: int) -> Axis:
        """Return the axis in its direction, 1, or the other one, -1."""
        return Axis(self.source, self.weights.flip(0) if direction < 0 else self.weights)

    def resize(self, length: int, align_corners: bool) -> Axis:
        """Return the axis with so many voxels in the same field of view."""
        columns = self.weights.T[None]
        resized = F.interpolate(columns, int(length), mode="linear", align_corners=align_corners)
        return Axis(self.source, resized[0].T)

    def resample(self, length: int, ratio: float) -> Axis:
        """Return the axis with so many voxels, one every `ratio` voxels from the first."""
        last = len(self.weights) - 1
        places = (torch.arange(length, dtype=torch.float64) * ratio).clamp(max=last)
        low, share = places.long(), places.frac()[:, None].to(self.weights)
        high = (low + 1).clamp(max=last)
        return Axis(self.source, self.weights[low].lerp(self.weights[high], share))

    def is_seen(self) -> torch.Tensor:
        """Return which voxels follow at least by half from what the network saw, bool `(own,)`."""
        return self.weights.sum(1) >= 0.5

    def normalize(self) -> Axis:
        """Return the axis whose voxels follow from what the network saw alone."""
        sums = self.weights.sum(1, keepdim=True)
        weights = torch.where(self.is_seen()[:, None], self.weights / sums, 0)
        return Axis(self.source, weights)


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
        lengths = image.shape[1:]
        axes = [Axis(source, torch.eye(length)) for source, length in enumerate(lengths)]
        affine = image.affine.numpy()
        for operation in reversed(image.applied_operations):
            axes, affine = _undo(operation, axes, affine)
        self._seen = [axis.is_seen() for axis in axes]
        self._axes = [axis.normalize() for axis in axes]
        self.affine = np.asarray(image.meta["original_affine"])
        self.shape = tuple(map(len, self._seen))

    def is_seen(self, start: int, stop: int) -> torch.Tensor:
        """Return where the network saw the image, in a slab as `slab` returns it: bool
        `(stop - start, Y, X)`.
        """
        x, y, z = self._seen
        return z[start:stop, None, None] & y[:, None] & x

    def slab(self, volume: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Bring the slab from `start` to `stop` along the third axis of this grid here.

        Args:
            volume: On the network's grid, `(N, H, W, D)`.
            start: First voxel.
            stop: End of the slab.

        Returns:
            `(N, stop - start, Y, X)`, the order of a NIfTI file, float32; 0 where the network saw
            nothing.
        """
        x, y, z = self._axes
        weights = z.weights[start:stop]
        used = weights.any(0).nonzero().flatten().tolist() or [0]
        first, last = used[0], used[-1] + 1
        part = volume.narrow(1 + z.source, first, last - first)
        part = part.permute(0, *(1 + axis.source for axis in (z, y, x))).float().contiguous()
        part = torch.einsum("ij,njhw->nihw", weights[:, first:last].to(part), part)
        return y.weights.to(part) @ part @ x.weights.T.to(part)


def _undo(
    operation: Mapping[str, Any], axes: list[Axis], affine: np.ndarray
) -> tuple[list[Axis], np.ndarray]:
    """Return the axes before an operation was done, and an affine whose axes point where theirs
    do.
    """
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
    is_linear = info.get("mode") in LINEAR
    if name == "Resize" and is_linear:
        is_aligned = info["align_corners"] is True
        lengths = zip(axes, operation["orig_size"], strict=True)
        return [axis.resize(length, is_aligned) for axis, length in lengths], affine
    if name == "SpatialResample" and is_linear:
        before = np.asarray(info["src_affine"])
        ratios = voxel_sizes(before) / voxel_sizes(affine)
        return [*map(Axis.resample, axes, operation["orig_size"], ratios)], before
    known = "reorientation, crops, padding, linear resizing and resampling"
    raise InputError(
        f"volume_transforms: {name} cannot be undone along the axes of an image. Use {known}."
    )
