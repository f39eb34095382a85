"""Base of the losses: `forward` checks input and target, `voxel_loss` is the formula, and `mean`
reduces it slab by slab together with its gradient, which is the only large tensor.

Logits are checked on the CPU only: on CUDA, `torch.amp.GradScaler` skips a step whose float16
logits overflowed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from calib_components.errors import InputError, warn_once
from calib_components.losses.slabs import Slab, map_slabs, whole
from calib_components.losses.targets import Labels, check_target, plain, require

Extras = Callable[[Slab], tuple[Tensor, ...]]  # see `CalibrationLoss.prepare`
# From the logits of a slab to what it adds to the mean
PartOfMean = Callable[[Tensor, Slab], Tensor]


class CalibrationLoss(nn.Module, ABC):
    """Base of the losses: the mean of `voxel_loss` over the voxels that count.

    A loss is this class with a `voxel_loss`. If that needs more than the logits and labels of its
    voxels, such as their neighbours, `prepare` provides it.

    Shape:
        - input: Logits, `(B, N, H, W)` or `(B, N, H, W, D)` with N >= 2. Float16 and bfloat16 are
          computed in float32.
        - target: Class indices, `(B, 1, *S)` or `(B, *S)`, of any type that holds whole numbers; or
          probabilities, `(B, N, *S)`. No gradient flows into it.
        - output: A scalar; 0, with a gradient of 0, if every voxel is ignored.

    Args:
        ignore_index: Label of voxels that do not count; for class indices only. Default: `None`.

    Raises:
        InputError: An option has an unsuitable value, the shapes do not match, or the values are
            not logits, class indices or probabilities.
    """

    accepts_probabilities = True  # as target

    def __init__(self, ignore_index: int | None = None) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    @abstractmethod
    def voxel_loss(self, logits: Tensor, labels: Tensor, *extras: Any, **_: Any) -> Tensor:
        """Loss of each voxel of a slab, `(b, h, ...)`.

        Args:
            logits: `(b, N, h, ...)`, float32 or float64.
            labels: Probability of each class, in shape and type of the logits; one-hot where the
                target holds class indices, and 0 at ignored voxels.
            *extras: What `prepare` provides, if anything.
        """

    def prepare(self, logits: Tensor, labels: Labels) -> Extras:
        """Return a function from a slab to the further arguments of `voxel_loss` there.

        The logits are all of them, `(B, N, *S)`, without gradient.
        """
        return lambda slab: ()

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits and a target."""
        logits = plain(input)
        if logits.ndim not in (4, 5) or logits.shape[1] < 2 or not logits.numel():
            raise InputError(
                "input must be logits of shape (B, N, H, W) or (B, N, H, W, D) with N >= 2"
                f" classes and at least one voxel, got {tuple(logits.shape)}. For the one channel x"
                " of a sigmoid, pass torch.cat([zeros_like(x), x], 1)."
            )
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        labels = check_target(target, logits.shape, self.ignore_index, logits.dtype)
        if labels.are_probabilities and not self.accepts_probabilities:
            raise InputError(f"target must hold class indices for {self}, got probabilities.")
        if not (logits.is_cuda or torch.compiler.is_compiling()):
            _warn_of_probabilities(logits.detach())
        mean = self.mean(logits, labels)
        if mean.is_cuda:
            return mean
        is_finite = mean.detach().isfinite()
        return require(mean, is_finite, "input: logits must be finite", logits.detach())

    def mean(self, logits: Tensor, labels: Labels) -> Tensor:
        """Mean of `voxel_loss` over the voxels that count, computed together with its gradient,
        where one is needed.

        Code compiled by `torch.compile` takes all voxels at once. `torch.func` and second
        derivatives are not supported.
        """
        extras, num_counted = self.prepare(logits.detach(), labels), labels.num_counted()

        def part_of_mean(logits: Tensor, slab: Slab) -> Tensor:
            y = labels.probabilities(slab, logits.dtype)
            losses = self.voxel_loss(logits, y, *extras(slab)).unsqueeze(1)
            return labels.without_ignored(losses, slab).sum() / num_counted

        if torch.compiler.is_compiling():
            return part_of_mean(logits, whole(logits.shape))
        if torch.is_grad_enabled() and logits.requires_grad:
            return _Mean.apply(logits, labels.values, part_of_mean)
        return _mean_and_gradient(logits, part_of_mean, with_gradient=False)[0]


class _Mean(torch.autograd.Function):
    """The mean; its gradient is kept for the backward pass and scaled there, in place."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, values: Tensor, part_of_mean: PartOfMean) -> Tensor:
        # The labels, too, so that PyTorch notices if they have changed when a gradient is computed
        # again.
        ctx.save_for_backward(logits, values)
        ctx.part_of_mean = part_of_mean
        mean, ctx.gradient = _mean_and_gradient(logits, part_of_mean, with_gradient=True)
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        logits, _ = ctx.saved_tensors
        gradient, ctx.gradient = ctx.gradient, None
        # Retain_graph=True: the tensor of the first pass belongs to whoever got it
        if gradient is None:
            gradient = _mean_and_gradient(logits, ctx.part_of_mean, with_gradient=True)[1]
        return gradient.mul_(grad_output), None, None


def _mean_and_gradient(
    logits: Tensor, part_of_mean: PartOfMean, *, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    gradient = torch.empty_like(logits) if with_gradient else None

    def mean_of_slab(slab: Slab) -> Tensor:
        with torch.set_grad_enabled(with_gradient):
            part = logits[slab].detach().requires_grad_(with_gradient)
            mean = part_of_mean(part, slab)
        if gradient is not None:
            (gradient[slab],) = torch.autograd.grad(mean, part)
        return mean.detach()

    return torch.stack(map_slabs(mean_of_slab, logits.shape, logits.device)).sum(), gradient


def _warn_of_probabilities(logits: Tensor) -> None:
    """Warn of an input after softmax.

    The first image is tested before all others, since it rules most inputs out.
    """
    for part in (logits[0], logits):
        lowest, highest = part.aminmax()
        if not 0 <= lowest < highest <= 1:
            return
    warn_once(
        "input holds only values from 0 to 1, as after softmax or sigmoid. Pass the output of the"
        " network before it: the loss applies softmax itself."
    )
