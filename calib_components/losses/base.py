"""Base of the losses: checks of input and target, and the mean over the voxels with its gradient.

The mean is computed slab by slab, so that all that a formula needs in between stays in the caches
of a CPU, and the only large tensor is the gradient. Each slab runs on one thread: threads that
share every operation wait for each other some hundred times in a loss, which takes a multiple of
the time where another process uses the same cores.

Labels are checked everywhere. On CUDA, the check is a `torch._assert_async`, so that the GPU does
not wait: the error appears at the next synchronisation, as for a label out of range in
`torch.nn.functional.cross_entropy`. Logits are checked on the CPU only: on CUDA,
`torch.amp.GradScaler` skips a step whose float16 logits overflowed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from calib_components.errors import InputError, warn_once

# Allowed deviation of a sum of probabilities from 1; bfloat16 rounds by about this much
SUM_TOLERANCE = 1e-2
# Logits in a slab. On a CPU, half a dozen tensors of this size for each of two threads fit into the
# caches, and more threads have smaller slabs; threads take turns in calling operations, so that
# small slabs cost time. On a GPU each kernel has work for all of it.
CPU_SLAB = 2**19
GPU_SLAB = 2**24
MOST_THREADS = 8


class Slab(NamedTuple):
    """An index of several images, or of several rows (of the first spatial dimension) of one image."""

    images: slice
    classes: slice  # all of them
    rows: slice


Result = TypeVar("Result")
Prepared = Callable[[Slab], Tensor]  # see `CalibrationLoss.prepare`
# From the logits of a slab to what it adds to the mean
PartOfMean = Callable[[Tensor, Slab], Tensor]


@dataclass(frozen=True)
class Labels:
    """A checked target.

    Attributes:
        values: Class index of each voxel, `(B, 1, *S)`, in an integer type that holds -1 to N, with
            -1 at ignored voxels; or the probability of each class, `(B, N, *S)`, in the type of the
            logits.
    """

    values: Tensor
    num_classes: int
    has_ignored: bool

    @property
    def are_probabilities(self) -> bool:
        return self.values.is_floating_point()

    def probabilities(self, slab: Slab, dtype: torch.dtype) -> Tensor:
        """Probability of each class in a slab, `(b, N, h, ...)`: one-hot, and 0 at ignored voxels,
        for indices.
        """
        values = self.values[slab]
        return values if self.are_probabilities else one_hot(values, self.num_classes).to(dtype)

    def counted(self, slab: Slab, dtype: torch.dtype) -> Tensor | None:
        """1 at voxels that count and 0 at ignored ones, `(b, 1, h, ...)`; None if all count."""
        return (self.values[slab] >= 0).to(dtype) if self.has_ignored else None

    def num_counted(self) -> int | Tensor:
        """Number of voxels that count, at least 1."""
        return (
            (self.values >= 0).sum().clamp(min=1) if self.has_ignored else self.values[:, 0].numel()
        )


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
    def voxel_loss(self, logits: Tensor, labels: Tensor, *prepared: Any, **_: Any) -> Tensor:
        """Loss of each voxel of a slab, `(b, h, ...)`.

        Args:
            logits: `(b, N, h, ...)`, float32 or float64.
            labels: Probability of each class, in shape and type of the logits; one-hot where the
                target holds class indices, and 0 at ignored voxels.
            *prepared: What `prepare` provides, if anything.
        """

    def prepare(self, logits: Tensor, labels: Labels) -> Prepared | None:
        """Return a function from a slab to the third argument of `voxel_loss` there; None if it
        takes two.

        The logits are all of them, `(B, N, *S)`, without gradient.
        """
        return None

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits and a target."""
        logits = plain(input)
        if logits.ndim not in (4, 5) or logits.shape[1] < 2:
            raise InputError(
                "input must be logits of shape (B, N, H, W) or (B, N, H, W, D) with N >= 2"
                f" classes, got {tuple(logits.shape)}. For the one channel x of a sigmoid, pass"
                " torch.cat([zeros_like(x), x], 1)."
            )
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        labels = check_target(plain(target), logits.shape, self.ignore_index, logits.dtype)
        if labels.are_probabilities and not self.accepts_probabilities:
            raise InputError(f"target must hold class indices for {self}, got probabilities.")
        if not (logits.is_cuda or torch.compiler.is_compiling()):
            _warn_of_probabilities(logits.detach())
        return self.mean(logits, labels)

    def mean(self, logits: Tensor, labels: Labels) -> Tensor:
        """Mean of `voxel_loss` over the voxels that count, computed together with its gradient,
        where one is needed.

        Code compiled by `torch.compile` and second derivatives take all voxels at once.
        `torch.func` is not supported.
        """
        prepared, num_counted = self.prepare(logits.detach(), labels), labels.num_counted()

        def part_of_mean(logits: Tensor, slab: Slab) -> Tensor:
            extras = () if prepared is None else (prepared(slab),)
            losses = self.voxel_loss(logits, labels.probabilities(slab, logits.dtype), *extras)
            counted = labels.counted(slab, logits.dtype)
            return (losses if counted is None else losses * counted[:, 0]).sum() / num_counted

        if torch.compiler.is_compiling():
            mean = part_of_mean(logits, whole(logits.shape))
        elif torch.is_grad_enabled() and logits.requires_grad:
            mean = _Mean.apply(logits, labels.values, part_of_mean)
        else:
            mean = _mean_and_gradient(logits, part_of_mean, with_gradient=False)[0]
        if mean.is_cuda:
            return mean
        return _require(
            mean, mean.detach().isfinite(), "input: logits must be finite", logits.detach()
        )


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
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        logits, _ = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the gradient is to be differentiated
            mean = ctx.part_of_mean(logits, whole(logits.shape))
            return torch.autograd.grad(mean, logits, grad_output, create_graph=True)[0], None, None
        gradient, ctx.gradient = ctx.gradient, None
        # Retain_graph=True: the tensor of the first pass belongs to whoever got it
        if gradient is None:
            gradient = _mean_and_gradient(logits, ctx.part_of_mean, with_gradient=True)[1]
        return gradient.mul_(grad_output), None, None


def _mean_and_gradient(
    logits: Tensor, part_of_mean: PartOfMean, *, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    gradient = torch.empty_like(logits) if with_gradient else None

    def run(slab: Slab) -> Tensor:
        with torch.set_grad_enabled(with_gradient):
            part = logits[slab].detach().requires_grad_(with_gradient)
            mean = part_of_mean(part, slab)
        if gradient is not None:
            (gradient[slab],) = torch.autograd.grad(mean, part)
        return mean.detach()

    return torch.stack(map_slabs(run, logits.shape, logits.device)).sum(), gradient


def map_slabs(
    function: Callable[[Slab], Result], shape: torch.Size, device: torch.device
) -> list[Result]:
    """Results of a function for all slabs of `(B, N, *S)`, in order.

    On a CPU, each slab runs on one thread.
    """
    if torch.compiler.is_compiling():
        return [function(whole(shape))]
    if device.type != "cpu":
        return [function(slab) for slab in split(shape, GPU_SLAB)]
    num_threads = torch.get_num_threads()
    slabs = split(shape, CPU_SLAB * 2 // max(min(num_threads, MOST_THREADS), 2))
    workers = min(num_threads, MOST_THREADS, len(slabs))
    if workers == 1:
        return [function(slab) for slab in slabs]
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        results = list(pool.map(function, slabs))
    # Threads of PyTorch take the number that was set last, in any of them
    torch.set_num_threads(num_threads)
    return results


def split(shape: torch.Size, size: int) -> list[Slab]:
    """Divide `(B, N, *S)` into slabs of about this many logits."""
    per_row = shape[1] * math.prod(shape[3:])
    num_rows = min(max(size // per_row, 1), shape[2])
    num_images = max(size // (per_row * shape[2]), 1)
    return [
        Slab(
            slice(image, image + num_images), slice(None), slice(row, min(row + num_rows, shape[2]))
        )
        for image in range(0, shape[0], num_images)
        for row in range(0, shape[2], num_rows)
    ]


def whole(shape: torch.Size) -> Slab:
    """All voxels as one slab."""
    return Slab(slice(0, shape[0]), slice(None), slice(0, shape[2]))


def plain(tensor: Tensor) -> Tensor:
    """Return a plain tensor, without the slow bookkeeping of subclasses such as
    `monai.data.MetaTensor`.
    """
    return tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)


def one_hot(indices: Tensor, num_classes: int) -> Tensor:
    """One-hot `(B, N, *S)` of class indices `(B, 1, *S)`, in their type; all zero where the index
    is not a class.

    Comparing in place stays in the small type, which on a CPU is several times faster than going
    through bool.
    """
    return indices.repeat(1, num_classes, *[1] * (indices.ndim - 2)).eq_(
        classes_like(indices, num_classes)
    )


def classes_like(tensor: Tensor, num_classes: int) -> Tensor:
    """All class indices along the second dimension, in the type of a tensor."""
    return torch.arange(num_classes, dtype=tensor.dtype, device=tensor.device).view(
        -1, *[1] * (tensor.ndim - 2)
    )


def check_target(
    target: Tensor, shape: torch.Size, ignore_index: int | None, dtype: torch.dtype
) -> Labels:
    """Check a target, as `CalibrationLoss` documents it, for logits of a shape; probabilities get
    this type.
    """
    batch, num_classes, *space = shape
    target = target.detach().unsqueeze(1) if target.shape == (batch, *space) else target.detach()
    if target.shape == (batch, num_classes, *space):
        if ignore_index is not None:
            raise InputError("ignore_index must be None if the target holds probabilities.")
        values, sums = target.to(dtype), target.sum(1, dtype=dtype)
        values = _require(
            values, values.min() >= 0, "target: probabilities must not be negative", values
        )
        is_one = ((sums - 1).abs() <= SUM_TOLERANCE).all()
        values = _require(
            values, is_one, "target: probabilities of a voxel must sum to 1 over the classes", sums
        )
        return Labels(values, num_classes, has_ignored=False)
    if target.shape != (batch, 1, *space):
        raise InputError(
            f"target must have shape {(batch, 1, *space)} or {(batch, *space)} (class indices) or"
            f" {tuple(shape)} (probabilities) for logits of shape {tuple(shape)}, got"
            f" {tuple(target.shape)}."
        )
    indices = target.long()
    if target.is_floating_point():
        message = "target: class indices must be whole numbers"
        indices = _require(indices, (indices == target).all(), message, target)
    message = f"target: class indices must be from 0 to {num_classes - 1}"
    ignored = None
    if ignore_index is not None:
        message += f", or ignore_index {ignore_index}"
        ignored = indices == ignore_index
        indices = indices.masked_fill(ignored, 0)
    lowest, highest = indices.aminmax()
    values = indices.to(torch.int8 if num_classes <= 127 else torch.int16)
    if ignored is not None:
        values.masked_fill_(ignored, -1)
    is_valid = (lowest >= 0) & (highest < num_classes)
    values = _require(values, is_valid, message, torch.stack((lowest, highest)))
    return Labels(values, num_classes, has_ignored=ignore_index is not None)


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


def _require(checked: Tensor, condition: Tensor, message: str, values: Tensor) -> Tensor:
    """Return the tensor `checked`, or raise an error with the range of `values`; see the module's
    docstring.
    """
    if torch.compiler.is_compiling():
        # Adding the operator's result, which is False, makes all that follows wait for the
        # operator.
        return checked + _raise_unless(condition, values, message)
    if checked.is_cuda:
        torch._assert_async(condition, message)
    elif not condition:
        raise InputError(
            f"{message}, got values from {values.min().item()} to {values.max().item()}."
        )
    return checked


@torch.library.custom_op(
    "calib_components::raise_unless",
    mutates_args=(),
    schema="(Tensor condition, Tensor values, str message) -> Tensor",
)
def _raise_unless(condition: Tensor, values: Tensor, message: str) -> Tensor:
    """`_require` as an operator: inductor would compile an assertion into a parallel loop, where
    C++ aborts.
    """
    return _require(torch.zeros_like(condition), condition, message, values)


@_raise_unless.register_fake
def _(condition: Tensor, values: Tensor, message: str) -> Tensor:
    return torch.zeros_like(condition)
