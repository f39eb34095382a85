"""The checked target of a loss.

Labels are checked everywhere. On CUDA, the check is a `torch._assert_async`, so that the GPU does
not wait: the error appears at the next synchronisation, as for a label out of range in
`torch.nn.functional.cross_entropy`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from calib_components.errors import InputError

# Allowed deviation of a sum of probabilities from 1; bfloat16 rounds by about this much
SUM_TOLERANCE = 1e-2


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

    def probabilities(self, slab: slice, dtype: torch.dtype) -> Tensor:
        """Probability of each class in a slab, `(B, N, h, ...)`: one-hot, and 0 at ignored voxels,
        for indices.
        """
        values = self.values[:, :, slab]
        if self.are_probabilities:
            return values
        return one_hot(values, self.num_classes).to(dtype)

    def without_ignored(self, values: Tensor, slab: slice) -> Tensor:
        """Values of the voxels of a slab, `(B, n, h, ...)`, with 0 at ignored voxels."""
        if not self.has_ignored:
            return values
        return values * (self.values[:, :, slab] >= 0).to(values.dtype)

    def num_counted(self) -> int | Tensor:
        """Number of voxels that count, at least 1."""
        if not self.has_ignored:
            return self.values[:, 0].numel()
        return (self.values >= 0).sum().clamp(min=1)


def check_target(
    target: Tensor, shape: torch.Size, ignore_index: int | None, dtype: torch.dtype
) -> Labels:
    """Check a target, as `CalibrationLoss` documents it, for logits of a shape; probabilities get
    this type.
    """
    batch, num_classes, *space = shape
    target = plain(target).detach()
    if target.shape == shape:
        if ignore_index is not None:
            raise InputError("ignore_index must be None if the target holds probabilities.")
        return Labels(_check_probabilities(target.to(dtype)), num_classes, has_ignored=False)
    if target.shape == (batch, *space):
        target = target.unsqueeze(1)
    if target.shape != (batch, 1, *space):
        raise InputError(
            f"target must have shape {(batch, 1, *space)} or {(batch, *space)} (class indices) or"
            f" {tuple(shape)} (probabilities) for logits of shape {tuple(shape)}, got"
            f" {tuple(target.shape)}."
        )
    indices = _check_indices(target, num_classes, ignore_index)
    return Labels(indices, num_classes, has_ignored=ignore_index is not None)


def _check_probabilities(values: Tensor) -> Tensor:
    sums = values.sum(1)
    are_ones = ((sums - 1).abs() <= SUM_TOLERANCE).all()
    values = require(
        values, values.min() >= 0, "target: probabilities must not be negative", values
    )
    return require(
        values, are_ones, "target: probabilities of a voxel must sum to 1 over the classes", sums
    )


def _check_indices(target: Tensor, num_classes: int, ignore_index: int | None) -> Tensor:
    """Return class indices in a small integer type, with -1 in place of `ignore_index`."""
    indices = target.long()
    if target.is_floating_point():
        are_whole = (indices == target).all()
        indices = require(indices, are_whole, "target: class indices must be whole numbers", target)
    message = f"target: class indices must be from 0 to {num_classes - 1}"
    if ignore_index is not None:
        message += f", or ignore_index {ignore_index}"
        ignored = indices == ignore_index
        indices = indices.masked_fill(ignored, 0)
    extremes = torch.stack(indices.aminmax())
    are_valid = (extremes[0] >= 0) & (extremes[1] < num_classes)
    values = indices.to(torch.int8 if num_classes <= 127 else torch.int16)
    if ignore_index is not None:
        values.masked_fill_(ignored, -1)
    return require(values, are_valid, message, extremes)


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
    repeated = indices.repeat(1, num_classes, *[1] * (indices.ndim - 2))
    return repeated.eq_(classes_like(indices, num_classes))


def classes_like(tensor: Tensor, num_classes: int) -> Tensor:
    """All class indices along the second dimension, in the type of a tensor."""
    classes = torch.arange(num_classes, dtype=tensor.dtype, device=tensor.device)
    return classes.view(-1, *[1] * (tensor.ndim - 2))


def require(checked: Tensor, condition: Tensor, message: str, values: Tensor) -> Tensor:
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
    """`require` as an operator: inductor would compile an assertion into a parallel loop, where C++
    aborts.
    """
    return require(torch.zeros_like(condition), condition, message, values)


@_raise_unless.register_fake
def _(condition: Tensor, values: Tensor, message: str) -> Tensor:
    return torch.zeros_like(condition)
