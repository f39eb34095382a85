"""Mean of a loss over the voxels, with its gradient, computed slab by slab.

Plain PyTorch on whole volumes writes and reads half a dozen tensors of the size of the logits. In slabs, whatever the
formula needs in between is small and on a CPU stays in its caches, so that a formula in plain operations costs about as
much as cross-entropy alone, and the only large tensor is the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from calib_components.losses.inputs import Target

Slab = tuple[slice, slice, slice]  # of images, of all classes, and of the first spatial dimension
VoxelLosses = Callable[[Tensor, Tensor, Slab], Tensor]

# Logits in a slab. On a CPU they fit into the caches of up to four threads; if there were many more, each tensor would
# come fresh from the operating system, which is slow. On a GPU each kernel has work for all of it.
CPU_SLAB_OF_A_THREAD = 2**18
GPU_SLAB = 2**24


def mean_over_voxels(voxel_losses: VoxelLosses, logits: Tensor, target: Target) -> Tensor:
    """Mean of the losses over the voxels that count; 0, with a gradient of 0, if none does.

    The gradient is computed together with the value, where one is needed. Code compiled by `torch.compile` and second
    derivatives take all voxels at once, in plain operations. `torch.func` is not supported.

    Args:
        voxel_losses: Maps the logits `(b, N, h, ...)` of a slab, the labels there, and the slab's position to the loss
            of each voxel, `(b, h, ...)`.
        logits: Logits, `(B, N, *S)`.
        target: Checked target.
    """
    if torch.compiler.is_compiling():
        return _slab_mean(logits, voxel_losses, target, _whole(logits.shape), _num_valid(logits, target))
    if torch.is_grad_enabled() and logits.requires_grad:
        return _Mean.apply(logits, voxel_losses, target)
    return _mean_and_gradient(logits, voxel_losses, target, with_gradient=False)[0]


class _Mean(torch.autograd.Function):
    """The mean; its gradient is kept for the backward pass and scaled there, in place."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, voxel_losses: VoxelLosses, target: Target) -> Tensor:
        # The labels, too, so that PyTorch notices if they have changed when a gradient is computed again.
        ctx.save_for_backward(logits, target.labels)
        ctx.voxel_losses, ctx.target = voxel_losses, target
        mean, ctx.gradient = _mean_and_gradient(logits, voxel_losses, target, with_gradient=True)
        return mean

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        logits, _ = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the gradient is to be differentiated
            num_valid = _num_valid(logits, ctx.target)
            mean = _slab_mean(logits, ctx.voxel_losses, ctx.target, _whole(logits.shape), num_valid)
            return torch.autograd.grad(mean, logits, grad_output, create_graph=True)[0], None, None
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:  # retain_graph=True: the tensor of the first pass belongs to whoever got it
            gradient = _mean_and_gradient(logits, ctx.voxel_losses, ctx.target, with_gradient=True)[1]
        return gradient.mul_(grad_output), None, None


def _mean_and_gradient(
    logits: Tensor, voxel_losses: VoxelLosses, target: Target, *, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    num_valid = _num_valid(logits, target)
    total = logits.new_zeros(())
    gradient = torch.empty_like(logits) if with_gradient else None
    for slab in slabs(logits.shape, logits.device):
        with torch.set_grad_enabled(with_gradient):
            part = logits[slab].detach().requires_grad_(with_gradient)
            mean = _slab_mean(part, voxel_losses, target, slab, num_valid)
        if gradient is not None:
            (gradient[slab],) = torch.autograd.grad(mean, part)
        total += mean.detach()
    return total, gradient


def _slab_mean(
    logits: Tensor, voxel_losses: VoxelLosses, target: Target, slab: Slab, num_valid: int | Tensor
) -> Tensor:
    """What a slab, of which these are the logits, contributes to the mean."""
    images, _, rows = slab
    losses = voxel_losses(logits, target.labels[slab] if target.is_soft else target.labels[images, rows], slab)
    return (losses if target.mask is None else losses * target.mask[images, rows]).sum() / num_valid


def _num_valid(logits: Tensor, target: Target) -> int | Tensor:
    """Number of voxels that count, at least 1."""
    return logits[:, 0].numel() if target.mask is None else target.mask.sum().clamp(min=1)


def slabs(shape: torch.Size, device: torch.device) -> Iterator[Slab]:
    """Divide `(B, N, *S)` into slabs of several images, or of several rows of one image, of limited size."""
    if torch.compiler.is_compiling():
        yield _whole(shape)
        return
    limit = CPU_SLAB_OF_A_THREAD * min(torch.get_num_threads(), 4) if device.type == "cpu" else GPU_SLAB
    per_row = shape[1] * math.prod(shape[3:])
    num_rows = min(max(limit // per_row, 1), shape[2])
    num_images = max(limit // (per_row * shape[2]), 1)
    for image in range(0, shape[0], num_images):
        for row in range(0, shape[2], num_rows):
            images = slice(image, min(image + num_images, shape[0]))
            yield images, slice(None), slice(row, min(row + num_rows, shape[2]))


def _whole(shape: torch.Size) -> Slab:
    return slice(0, shape[0]), slice(None), slice(0, shape[2])
