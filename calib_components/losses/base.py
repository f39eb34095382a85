"""Base of the losses: `forward` checks input and target, `voxel_loss` is the formula, and `mean`
reduces it slab by slab together with its gradient, which is the only large tensor.

Logits are checked on the CPU only: on CUDA, `torch.amp.GradScaler` skips a step whose float16
logits overflowed.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from calib_components.errors import InputError, check_count, warn_once
from calib_components.losses.slabs import slabs_of
from calib_components.losses.targets import Labels, check_target, plain, require

Extras = Callable[[slice], tuple[Tensor, ...]]  # see `CalibrationLoss.prepare`
# A function that returns what a slab adds to the mean, from the logits of the slab
PartOfMean = Callable[[Tensor, slice], Tensor]


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
        if ignore_index is not None:
            check_count("ignore_index", ignore_index, -(2**31))
        self.ignore_index = ignore_index

    def extra_repr(self) -> str:
        """Return the options as they are passed."""
        values = {**vars(getattr(self, "window", self)), **vars(self)}
        names = inspect.signature(type(self)).parameters
        return ", ".join(f"{name}={values[name]!r}" for name in names if name in values)

    @abstractmethod
    def voxel_loss(self, logits: Tensor, labels: Tensor, *extras: Any, **_: Any) -> Tensor:
        """Loss of each voxel of a slab, `(B, h, ...)`.

        Args:
            logits: `(B, N, h, ...)`, float32 or float64.
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
        logits = plain("input", input)
        if not logits.is_floating_point():
            raise InputError(f"input must be logits, floating point, got {logits.dtype}.")
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
        if not mean.is_cuda:
            is_finite = mean.detach().isfinite()
            require(is_finite, "input: logits must be finite", logits.detach())
        return mean

    def mean(self, logits: Tensor, labels: Labels) -> Tensor:
        """Mean of `voxel_loss` over the voxels that count, computed together with its gradient,
        where one is needed.

        Code compiled by `torch.compile` takes all voxels at once. `torch.func` and second
        derivatives, `create_graph=True`, are refused.
        """
        extras, num_counted = self.prepare(logits.detach(), labels), labels.num_counted()

        def part_of_mean(logits: Tensor, slab: slice) -> Tensor:
            y = labels.probabilities(slab, logits.dtype)
            losses = self.voxel_loss(logits, y, *extras(slab)).unsqueeze(1)
            return labels.zero_ignored(losses, slab).sum() / num_counted

        needs_gradient = torch.is_grad_enabled() and logits.requires_grad
        if needs_gradient and not torch.compiler.is_compiling():
            return _Mean.apply(logits, part_of_mean)
        parts = [part_of_mean(logits[:, :, slab], slab) for slab in slabs_of(logits)]
        return torch.stack(parts).sum()


class _Mean(torch.autograd.Function):
    """The mean; its gradient is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, part_of_mean: PartOfMean) -> Tensor:
        gradient, mean = torch.empty_like(logits), logits.new_zeros(())
        for slab in slabs_of(logits):
            with torch.enable_grad():
                part = logits[:, :, slab].detach().requires_grad_()
                part_mean = part_of_mean(part, slab)
            (gradient[:, :, slab],) = torch.autograd.grad(part_mean, part)
            mean += part_mean.detach()
        ctx.save_for_backward(gradient)
        return mean

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():  # the kept gradient has no graph: it would pass for a constant
            raise NotImplementedError("create_graph=True: losses have no second derivatives.")
        (gradient,) = ctx.saved_tensors
        if grad_output.is_cuda or grad_output != 1:  # a comparison would make a GPU wait
            gradient = gradient * grad_output
        return gradient, None


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
