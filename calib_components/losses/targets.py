"""The checked target of a loss.

Labels are checked everywhere. On CUDA, and in compiled code, the check is a `torch._assert_async`,
so that the GPU does not wait: the error appears at the next synchronisation, as for a label out of
range in `torch.nn.functional.cross_entropy`. Compiled code of a CPU may end the process with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from calib_components.errors import InputError
from calib_components.probabilities import are_probabilities


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

    def zero_ignored(self, values: Tensor, slab: slice) -> Tensor:
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
    target = plain("target", target).detach()
    if target.is_complex():
        raise InputError(f"target must hold real numbers, got {target.dtype}.")
    if target.shape == shape:
        if ignore_index is not None:
            raise InputError("ignore_index must be None if the target holds probabilities.")
        values = target.to(dtype)
        message = (
            "target: probabilities of a voxel must be from 0 to 1 and sum to 1 over the classes"
        )
        require(are_probabilities(values, 1), message, values)
        return Labels(values, num_classes, has_ignored=False)
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


def _check_indices(target: Tensor, num_classes: int, ignore_index: int | None) -> Tensor:
    """Return class indices in a small integer type, with -1 in place of `ignore_index`."""
    indices = target.long()
    if target.is_floating_point():
        are_whole = (indices == target).all()
        require(are_whole, "target: class indices must be whole numbers", target)
    message = f"target: class indices must be from 0 to {num_classes - 1}"
    if ignore_index is not None:
        message += f", or ignore_index {ignore_index}"
        ignored = indices == ignore_index
        indices = indices.masked_fill(ignored, 0)
    lowest, highest = indices.aminmax()
    require((lowest >= 0) & (highest < num_classes), message, indices)
    values = indices.to(torch.int8 if num_classes <= 127 else torch.int16)
    if ignore_index is not None:
        values.masked_fill_(ignored, -1)
    return values


def plain(name: str, tensor: Tensor) -> Tensor:
    """Return an argument of a loss as a plain tensor, without the slow bookkeeping of subclasses
    such as `monai.data.MetaTensor`.
    """
    if not isinstance(tensor, Tensor):
        is_list = isinstance(tensor, list | tuple)
        hint = " Of deep supervision, give the logits of full resolution." if is_list else ""
        raise InputError(f"{name} must be a tensor, got {type(tensor).__name__}.{hint}")
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


def require(condition: Tensor, message: str, values: Tensor) -> None:
    """Raise an error with the range of `values` unless a condition, `()`, holds; see the module's
    docstring.
    """
    if condition.is_cuda or torch.compiler.is_compiling():
        torch._assert_async(condition, message)
    elif not condition:
        raise InputError(
            f"{message}, got values from {values.min().item()} to {values.max().item()}."
        )
