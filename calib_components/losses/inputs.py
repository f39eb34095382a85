"""Input handling shared by all losses: check input and target.

Checking values (finite logits, labels in range, probabilities that sum to one) must not make a GPU wait at every step.
On the CPU a failed check raises `ValueError`, also in code compiled by `torch.compile`. On CUDA the check is a
`torch._assert_async`: the device tests the condition and the error appears at the next synchronisation, as it does for
a label out of range in `torch.nn.functional.cross_entropy`. Run the batch on the CPU to see the full message. (Code
compiled with inductor in PyTorch 2.6 omits such assertions.)

Logits on CUDA are not checked: a failed assertion there ends the process, whereas a step whose float16 logits
overflowed should simply be skipped by `torch.amp.GradScaler`. NaN and +inf logits therefore give a loss or a gradient
that is not finite.

In compiled code for the CPU the check is an operator of its own, because an assertion compiled by inductor may fail in
a parallel loop, where C++ ends the process.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from calib_components.arguments import check_ignore_index, warn_once
from calib_components.errors import InputError

SUM_TOLERANCE = 1e-2  # allowed deviation of a sum of probabilities from 1; bfloat16 rounds by about this much
LARGEST_LOGIT = 1e15  # the sum of the squares of 1e8 logits is then finite in float32


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
    check_ignore_index(ignore_index)
    logits = plain(input, "input")
    target = plain(target, "target")
    if not logits.is_floating_point():
        raise TypeError(f"input: expected floating-point logits, got {logits.dtype}; the order is loss(input, target)")
    if logits.ndim not in (4, 5) or logits.shape[1] < 2:
        one_channel = logits.ndim in (4, 5) and logits.shape[1] == 1
        remedy = "; for the one channel of a sigmoid, x, give torch.cat([torch.zeros_like(x), x], 1)"
        raise ValueError(
            "input: expected logits of shape (B, N, H, W) or (B, N, H, W, D) with N >= 2 classes, got "
            f"{tuple(logits.shape)}{remedy if one_channel else ''}"
        )
    if logits.numel() == 0:
        raise ValueError(f"input: expected at least one voxel, got shape {tuple(logits.shape)}")
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()

    batch, num_classes, *space = logits.shape
    if target.shape == (batch, *space):
        target = target.unsqueeze(1)
    elif target.shape not in ((batch, 1, *space), (batch, num_classes, *space)):
        voxels_of_channels_last = (batch, *logits.shape[1:-1])
        channels_last = target.shape in (voxels_of_channels_last, (batch, 1, *voxels_of_channels_last[1:]))
        remedy = "; the classes are the second dimension of the input: input.movedim(-1, 1)"
        raise ValueError(
            f"target: expected shape {(batch, 1, *space)} or {(batch, *space)} (class indices) or "
            f"{(batch, num_classes, *space)} (probabilities), got {tuple(target.shape)}"
            f"{remedy if channels_last else ''}"
        )
    checked = check_target(target, num_classes, ignore_index, logits.dtype)
    return logits, checked if logits.is_cuda else _check_logits(logits, checked)


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
        expected = "target: expected probabilities of at least 0"
        probabilities = _check(probabilities, probabilities.min() >= 0, expected, probabilities)
        expected = "target: expected probabilities whose sum over the classes is 1"
        return Target(_check(probabilities, ((sums - 1).abs() <= SUM_TOLERANCE).all(), expected, sums))

    labels = target.squeeze(1).long()
    if target.is_floating_point():
        expected = "target: expected whole numbers as class indices"
        labels = _check(labels, (labels == target.squeeze(1)).all(), expected, target)
    mask = None
    expected = f"target: expected class indices from 0 to {num_classes - 1}"
    if ignore_index is not None:
        expected += f" or ignore_index {ignore_index}"
        not_ignored = labels.clone().ne_(ignore_index)
        labels = labels * not_ignored
        mask = not_ignored.to(dtype)
    lowest, highest = labels.aminmax()
    in_range = (lowest >= 0) & (highest < num_classes)
    return Target(_check(labels, in_range, expected, torch.stack((lowest, highest))), mask)


def plain(tensor: Tensor, name: str) -> Tensor:
    """Return a plain tensor, without the slow bookkeeping of subclasses such as `monai.data.MetaTensor`."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    return tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)


def _check_logits(logits: Tensor, target: Target) -> Target:
    lowest, highest = logits.detach().aminmax()  # NaN if any value is
    in_range = (lowest >= -LARGEST_LOGIT) & (highest <= LARGEST_LOGIT)
    expected = f"input: expected finite logits from -{LARGEST_LOGIT:.0e} to {LARGEST_LOGIT:.0e}"
    labels = _check(target.labels, in_range, expected, torch.stack((lowest, highest)))
    if not torch.compiler.is_compiling() and 0 <= lowest < highest <= 1:
        warn_once(
            "input: expected logits, got only values from 0 to 1, as after softmax or sigmoid; give the network's "
            "output before it, since the loss applies softmax itself"
        )
    return Target(labels, target.mask)


def _check(checked: Tensor, condition: Tensor, expected: str, values: Tensor) -> Tensor:
    """Return the tensor `checked`, or raise an error that tells the range of `values`; see the module's docstring."""
    if checked.is_cuda:
        torch._assert_async(condition, expected)
    elif torch.compiler.is_compiling():
        # Adding the operator's result, which is False, makes all that follows wait for the operator.
        return checked + _raise_unless(condition, values, expected)
    elif not condition:
        raise InputError(f"{expected}, got values from {values.min().item()} to {values.max().item()}")
    return checked


@torch.library.custom_op(
    "calib_components::raise_unless",
    mutates_args=(),
    schema="(Tensor condition, Tensor values, str expected) -> Tensor",
)
def _raise_unless(condition: Tensor, values: Tensor, expected: str) -> Tensor:
    return _check(torch.zeros_like(condition), condition, expected, values)


@_raise_unless.register_fake
def _(condition: Tensor, values: Tensor, expected: str) -> Tensor:
    return torch.zeros_like(condition)
