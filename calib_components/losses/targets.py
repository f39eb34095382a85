"""What every loss does with its input and target: accept, check, and average over the voxels that count.

Checks of values (finite logits, labels in range, probabilities that sum to one) must not make a GPU wait at each step.
On the CPU a failed check raises `ValueError`. On CUDA, and in code compiled by `torch.compile`, it is a
`torch._assert_async`: the device tests the condition itself and the error comes up at the next synchronisation, as for
a label out of range in `torch.nn.functional.cross_entropy`; run the batch on the CPU to read what was wrong. (Code that
PyTorch 2.6 compiled with inductor leaves such assertions out.) One check is not made on CUDA: a failed assertion there
ends the process, while a step whose float16 logits overflowed is `torch.amp.GradScaler`'s to skip. So NaN and +inf
logits give a loss or a gradient that is not finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SUM_TOLERANCE = 1e-2  # how far probabilities may be from a sum of one: bfloat16 rounds them that much


@dataclass(frozen=True)
class Target:
    """A checked target.

    Attributes:
        labels: class index of each voxel, `(B, *S)` int64, with 0 at ignored voxels; or the probability of each class,
            `(B, N, *S)`, in the floating-point type of the logits.
        counted: 1 at voxels that count and 0 at ignored ones, `(B, *S)`, in the floating-point type of the logits; None
            where every voxel counts.
    """

    labels: Tensor
    counted: Tensor | None = None

    @property
    def is_soft(self) -> bool:
        """Whether the labels are probabilities."""
        return self.labels.is_floating_point()


def prepare(input: Tensor, target: Tensor, ignore_index: int | None) -> tuple[Tensor, Target]:
    """Checks the arguments of a loss and brings them to one form.

    Args:
        input: logits, `(B, N, *S)` with two or three spatial dimensions and N >= 2, any floating-point type.
        target: class index, `(B, 1, *S)` or `(B, *S)`, any type that holds whole numbers; or probabilities,
            `(B, N, *S)`. It is a constant: no gradient flows into it.
        ignore_index: label of the voxels to leave out, or None.

    Returns:
        the logits, a plain tensor in float32 (float64 stays float64), and the target.

    Raises:
        TypeError: `input` or `target` is not a tensor of a suitable type.
        ValueError: the shapes do not match, or the values are not logits, class indices or probabilities.
    """
    logits = plain(input, "input")
    target = plain(target, "target")
    if not logits.is_floating_point():
        raise TypeError(f"input: expected floating-point logits, got {logits.dtype}")
    if logits.ndim not in (4, 5) or logits.shape[1] < 2:
        raise ValueError(
            f"input: expected logits of shape (B, N, H, W) or (B, N, H, W, D) with N >= 2, got {tuple(logits.shape)}"
        )
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if not logits.is_cuda:
        # A sum is finite only if all its terms are, and costs a fraction of looking at each.
        _check(logits.detach().sum().isfinite(), "input: expected finite logits", logits)

    batch, num_classes, *space = logits.shape
    if target.shape == (batch, *space):
        target = target.unsqueeze(1)
    elif target.shape not in ((batch, 1, *space), (batch, num_classes, *space)):
        raise ValueError(
            f"target: expected shape {(batch, 1, *space)} or {(batch, *space)} (class index) or "
            f"{(batch, num_classes, *space)} (probabilities), got {tuple(target.shape)}"
        )
    return logits, prepare_target(target, num_classes, ignore_index, logits.dtype)


def prepare_target(target: Tensor, num_classes: int, ignore_index: int | None, dtype: torch.dtype) -> Target:
    """Checks the values of a target: class index `(B, 1, *S)` or probabilities `(B, num_classes, *S)`."""
    target = plain(target, "target").detach()
    if target.is_complex():
        raise TypeError(f"target: expected class indices or probabilities, got {target.dtype}")

    if target.shape[1] > 1:
        if ignore_index is not None:
            raise ValueError(f"ignore_index: expected None with probabilities as target, got {ignore_index}")
        probabilities = target.to(dtype)
        sums = probabilities.sum(1)
        _check(probabilities.min() >= 0, "target: expected probabilities of at least 0", probabilities)
        _check(
            ((sums - 1).abs() <= SUM_TOLERANCE).all(),
            "target: expected probabilities whose sum over the classes is 1",
            sums,
        )
        return Target(probabilities)

    index = target.squeeze(1).long()
    if target.is_floating_point():
        _check((index == target.squeeze(1)).all(), "target: expected whole numbers as class indices", target)
    counted = None
    expected = f"target: expected class indices from 0 to {num_classes - 1}"
    if ignore_index is not None:
        expected += f" or ignore_index {ignore_index}"
        not_ignored = index.clone().ne_(ignore_index)
        index = index * not_ignored
        counted = not_ignored.to(dtype)
    lowest, highest = index.aminmax()
    _check((lowest >= 0) & (highest < num_classes), expected, index)
    return Target(index, counted)


def cross_entropy(logits: Tensor, target: Target) -> Tensor:
    """Mean over the voxels that count of `-log s_y`, or of `-sum_k q_k log s_k` for probabilities `q`."""
    return _CrossEntropy.apply(logits, target.labels, target.counted)


class _CrossEntropy(torch.autograd.Function):
    """As `F.cross_entropy`, with a backward pass that makes one tensor of the size of the logits instead of two.

    That tensor is changed in place, so a second derivative raises an error.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, counted: Tensor | None) -> Tensor:
        ctx.save_for_backward(logits, labels, counted)
        return cross_entropy_value(logits, labels, counted)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        logits, labels, counted = ctx.saved_tensors
        grad = cross_entropy_slope(logits, labels, counted)
        return grad.mul_(grad_output / num_counted(logits, counted)), None, None


def cross_entropy_value(logits: Tensor, labels: Tensor, counted: Tensor | None) -> Tensor:
    """Value of `cross_entropy`, for use in an autograd function; the arguments are the fields of `Target`."""
    log_probabilities = F.log_softmax(logits, dim=1)
    if labels.is_floating_point():
        log_likelihood = log_probabilities.mul_(labels).sum(1)
    else:
        log_likelihood = log_probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
    return -voxel_mean(log_likelihood, counted)


def cross_entropy_slope(logits: Tensor, labels: Tensor, counted: Tensor | None) -> Tensor:
    """Gradient of `cross_entropy`, times the number of voxels that count, in a new tensor."""
    slope = F.softmax(logits, dim=1)
    if labels.is_floating_point():
        slope.mul_(labels.sum(1, keepdim=True)).sub_(labels)
    else:
        index = labels.unsqueeze(1)
        slope.scatter_add_(1, index, slope.new_full((), -1).expand_as(index))
    return slope if counted is None else slope.mul_(counted.unsqueeze(1))


def voxel_mean(values: Tensor, counted: Tensor | None) -> Tensor:
    """Mean of `(B, *S)` over the voxels that count; 0, with a gradient of 0, where none does."""
    if counted is None:
        return values.mean()
    return (values * counted).sum() / counted.sum().clamp(min=1)


def num_counted(logits: Tensor, counted: Tensor | None) -> int | Tensor:
    """How many voxels count, at least 1."""
    return logits[:, 0].numel() if counted is None else counted.sum().clamp(min=1)


def check_weight(name: str, weight: float) -> None:
    """Raises `ValueError` unless a weight or margin is a finite number of at least 0."""
    if not 0 <= weight < math.inf:
        raise ValueError(f"{name}: expected a number of at least 0, got {weight!r}")


def plain(tensor: Tensor, name: str) -> Tensor:
    """Takes off a tensor subclass, such as `monai.data.MetaTensor`, whose bookkeeping at each operation is slow."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    return tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)


def _check(condition: Tensor, expected: str, values: Tensor) -> None:
    """Raises, or on CUDA and in compiled code asserts without waiting: see the top of this file."""
    if values.is_cuda or torch.compiler.is_compiling():
        torch._assert_async(condition, expected)
    elif not condition:
        raise ValueError(f"{expected}, got values from {values.min().item()} to {values.max().item()}")
