"""Input handling shared by all losses: check input and target, and average over the voxels that count.

Checking values (finite logits, labels in range, probabilities that sum to one) must not make a GPU wait at every step.
On the CPU a failed check raises `ValueError`. On CUDA, and in code compiled by `torch.compile`, the check is a
`torch._assert_async`: the device tests the condition and the error appears at the next synchronisation, as it does for
a label out of range in `torch.nn.functional.cross_entropy`. Run the batch on the CPU to see the full message. (Code
compiled with inductor in PyTorch 2.6 omits such assertions.)

Logits on CUDA are not checked: a failed assertion there ends the process, whereas a step whose float16 logits
overflowed should simply be skipped by `torch.amp.GradScaler`. NaN and +inf logits therefore give a loss or a gradient
that is not finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SUM_TOLERANCE = 1e-2  # allowed deviation of a sum of probabilities from 1; bfloat16 rounds by about this much


@dataclass(frozen=True)
class Target:
    """A checked target.

    Attributes:
        labels: Class index of each voxel, `(B, *S)` int64, with 0 at ignored voxels; or the probability of each class,
            `(B, N, *S)`, in the floating-point type of the logits.
        mask: 1 at voxels that count and 0 at ignored voxels, `(B, *S)`, in the floating-point type of the logits; None
            if every voxel counts.
    """

    labels: Tensor
    mask: Tensor | None = None

    @property
    def is_soft(self) -> bool:
        """Whether the labels are probabilities."""
        return self.labels.is_floating_point()


def check_inputs(input: Tensor, target: Tensor, ignore_index: int | None) -> tuple[Tensor, Target]:
    """Check the tensors given to a loss and convert them to one form.

    Args:
        input: Logits, `(B, N, *S)`, with two or three spatial dimensions, N >= 2 and any floating-point type.
        target: Class indices, `(B, 1, *S)` or `(B, *S)`, of any type that holds whole numbers; or probabilities,
            `(B, N, *S)`. Treated as a constant: no gradient flows into it.
        ignore_index: Label of the voxels to leave out, or None.

    Returns:
        The logits as a plain float32 tensor (float64 stays float64), and the checked target.

    Raises:
        TypeError: `input` or `target` is not a tensor of a suitable type.
        ValueError: The shapes do not match, or the values are not logits, class indices or probabilities.
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
        # A sum is finite only if all its terms are, and is much cheaper than testing each term.
        _check(logits.detach().sum().isfinite(), "input: expected finite logits", logits)

    batch, num_classes, *space = logits.shape
    if target.shape == (batch, *space):
        target = target.unsqueeze(1)
    elif target.shape not in ((batch, 1, *space), (batch, num_classes, *space)):
        raise ValueError(
            f"target: expected shape {(batch, 1, *space)} or {(batch, *space)} (class indices) or "
            f"{(batch, num_classes, *space)} (probabilities), got {tuple(target.shape)}"
        )
    return logits, check_target(target, num_classes, ignore_index, logits.dtype)


def check_target(target: Tensor, num_classes: int, ignore_index: int | None, dtype: torch.dtype) -> Target:
    """Check the values of a target: class indices `(B, 1, *S)` or probabilities `(B, num_classes, *S)`."""
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

    labels = target.squeeze(1).long()
    if target.is_floating_point():
        _check((labels == target.squeeze(1)).all(), "target: expected whole numbers as class indices", target)
    mask = None
    expected = f"target: expected class indices from 0 to {num_classes - 1}"
    if ignore_index is not None:
        expected += f" or ignore_index {ignore_index}"
        not_ignored = labels.clone().ne_(ignore_index)
        labels = labels * not_ignored
        mask = not_ignored.to(dtype)
    lowest, highest = labels.aminmax()
    _check((lowest >= 0) & (highest < num_classes), expected, labels)
    return Target(labels, mask)


def check_non_negative(name: str, value: float) -> None:
    """Raise `ValueError` unless an option is a finite number of at least 0."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}: expected a number of at least 0, got {value!r}")


def plain(tensor: Tensor, name: str) -> Tensor:
    """Return a plain tensor, without the slow bookkeeping of subclasses such as `monai.data.MetaTensor`."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    return tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)


def voxel_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of `(B, *S)` over the voxels that count; 0, with a gradient of 0, if none does."""
    if mask is None:
        return values.mean()
    return (values * mask).sum() / mask.sum().clamp(min=1)


def num_valid(logits: Tensor, mask: Tensor | None) -> int | Tensor:
    """Number of voxels that count, at least 1."""
    return logits[:, 0].numel() if mask is None else mask.sum().clamp(min=1)


def _check(condition: Tensor, expected: str, values: Tensor) -> None:
    """Raise an error, or on CUDA and in compiled code assert without waiting; see the module's docstring."""
    if values.is_cuda or torch.compiler.is_compiling():
        torch._assert_async(condition, expected)
    elif not condition:
        raise ValueError(f"{expected}, got values from {values.min().item()} to {values.max().item()}")
