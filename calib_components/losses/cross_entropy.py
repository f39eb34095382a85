"""Cross-entropy as a fused autograd function, and its value and gradient for use in other such functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from calib_components.losses.inputs import Target, num_valid, voxel_mean


def cross_entropy(logits: Tensor, target: Target) -> Tensor:
    """Mean of `-log s_y`, or of `-sum_k q_k log s_k` for probabilities `q`, over the voxels that count."""
    return _CrossEntropy.apply(logits, target.labels, target.mask)


class _CrossEntropy(torch.autograd.Function):
    """Like `F.cross_entropy`, but the backward pass allocates one tensor of the size of the logits instead of two.

    That tensor is modified in place, so second derivatives raise an error.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        ctx.save_for_backward(logits, labels, mask)
        return cross_entropy_value(logits, labels, mask)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        logits, labels, mask = ctx.saved_tensors
        gradient = cross_entropy_gradient(logits, labels, mask)
        return gradient.mul_(grad_output / num_valid(logits, mask)), None, None


def cross_entropy_value(logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
    """Value of `cross_entropy`; `labels` and `mask` are the attributes of `Target`."""
    log_probabilities = F.log_softmax(logits, dim=1)
    if labels.is_floating_point():
        log_likelihood = log_probabilities.mul_(labels).sum(1)
    else:
        log_likelihood = log_probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
    return -voxel_mean(log_likelihood, mask)


def cross_entropy_gradient(logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
    """Gradient of the sum of the cross-entropy over the voxels that count, as a new tensor.

    Dividing it by `num_valid` gives the gradient of `cross_entropy`.
    """
    gradient = F.softmax(logits, dim=1)
    if labels.is_floating_point():
        gradient.mul_(labels.sum(1, keepdim=True)).sub_(labels)
    else:
        index = labels.unsqueeze(1)
        gradient.scatter_add_(1, index, gradient.new_full((), -1).expand_as(index))
    return gradient if mask is None else gradient.mul_(mask.unsqueeze(1))
