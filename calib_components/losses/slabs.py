"""Mean of a loss over the voxels, with its gradient, computed slab by slab.

Plain PyTorch on whole volumes writes and reads half a dozen tensors of the size of the logits. In slabs, whatever the
formula needs in between is small and on a CPU stays in its caches, so that a formula in plain operations costs about as
much as cross-entropy alone, and memory beyond the gradient does not grow with the volume.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from calib_components.losses.inputs import Target

Slab = tuple[slice, slice, slice]  # of images, of all classes, and of the first spatial dimension
VoxelLosses = Callable[[Tensor, Tensor, Slab], Tensor]

# Logits in a slab. On a CPU they fit into the caches of up to four threads; with many more, tensors come fresh from the
# operating system and are slow. On a GPU there is work for all of it.
CPU_SLAB_OF_A_THREAD = 2**18
GPU_SLAB = 2**24


def mean_over_voxels(voxel_losses: VoxelLosses, logits: Tensor, target: Target) -> Tensor:
    """Mean of the losses over the voxels that count; 0, with a gradient of 0, if none does.

    Code compiled by `torch.compile` computes all voxels at once, since the compiler fuses the formula itself. Otherwise
    the gradient is computed together with the value, where one is needed, and cannot be differentiated again.

    Args:
        voxel_losses: Maps the logits `(b, N, h, ...)` of a slab, the labels there, and the slab's position to the loss
            of each voxel, `(b, h, ...)`.
        logits: Logits, `(B, N, *S)`.
        target: Checked target.
    """
    num_valid = logits[:, 0].numel() if target.mask is None else target.mask.sum().clamp(min=1)
    if torch.compiler.is_compiling():
        return _slab_sum(voxel_losses, logits, target, whole(logits.shape)) / num_valid
    if torch.is_grad_enabled() and logits.requires_grad:
        return _Mean.apply(logits, voxel_losses, target, num_valid)
    sums = [_slab_sum(voxel_losses, logits[slab], target, slab) for slab in slabs(logits.shape, logits.device)]
    return torch.stack(sums).sum() / num_valid


class _Mean(torch.autograd.Function):
    """Value and gradient of the mean; the gradient is kept for the backward pass and scaled there, in place."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, voxel_losses: VoxelLosses, target: Target, num_valid: int | Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.arguments = voxel_losses, target, num_valid
        value, ctx.gradient = _value_and_gradient(logits, *ctx.arguments)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:  # the graph was retained: the tensor now belongs to whoever got it in the first pass
            (logits,) = ctx.saved_tensors
            _, gradient = _value_and_gradient(logits, *ctx.arguments)
        return gradient.mul_(grad_output), None, None, None


def _value_and_gradient(
    logits: Tensor, voxel_losses: VoxelLosses, target: Target, num_valid: int | Tensor
) -> tuple[Tensor, Tensor]:
    value, gradient = logits.new_zeros(()), torch.empty_like(logits)
    for slab in slabs(logits.shape, logits.device):
        with torch.enable_grad():
            part = logits[slab].detach().requires_grad_()
            mean = _slab_sum(voxel_losses, part, target, slab) / num_valid
        gradient[slab] = torch.autograd.grad(mean, part)[0]
        value += mean.detach()
    return value, gradient


def _slab_sum(voxel_losses: VoxelLosses, logits: Tensor, target: Target, slab: Slab) -> Tensor:
    images, _, rows = slab
    losses = voxel_losses(logits, target.labels[slab] if target.is_soft else target.labels[images, rows], slab)
    return losses.sum() if target.mask is None else (losses * target.mask[images, rows]).sum()


def slabs(shape: torch.Size, device: torch.device) -> Iterator[Slab]:
    """Divide `(B, N, *S)` into slabs of several images, or of several rows of one image, of limited size."""
    if torch.compiler.is_compiling():
        yield whole(shape)
        return
    limit = CPU_SLAB_OF_A_THREAD * min(torch.get_num_threads(), 4) if device.type == "cpu" else GPU_SLAB
    per_row = shape[1] * math.prod(shape[3:])
    num_rows = min(max(limit // per_row, 1), shape[2])
    num_images = max(limit // (per_row * shape[2]), 1)
    for image in range(0, shape[0], num_images):
        for row in range(0, shape[2], num_rows):
            images = slice(image, min(image + num_images, shape[0]))
            yield images, slice(None), slice(row, min(row + num_rows, shape[2]))


def whole(shape: torch.Size) -> Slab:
    """The slab that is the whole tensor `(B, N, *S)`."""
    return slice(0, shape[0]), slice(None), slice(0, shape[2])
