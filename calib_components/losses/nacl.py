"""Neighbor-aware calibration loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib_components.losses.priors import check_prior, neighbor_votes
from calib_components.losses.targets import (
    check_weight,
    cross_entropy,
    cross_entropy_slope,
    cross_entropy_value,
    num_counted,
    prepare,
    voxel_mean,
)

PENALTIES = ("l1", "l2")
CONSTRAINTS = ("logits", "softmax")


def nacl_loss(
    input: Tensor,
    target: Tensor,
    *,
    prior: str = "mean",
    kernel_size: int = 3,
    sigma: float = 2.0,
    penalty: str = "l1",
    constraint: str = "logits",
    penalty_weight: float = 0.1,
    padding: str = "replicate",
    ignore_index: int | None = None,
) -> Tensor:
    """Function form of `NACLLoss`, which says what it computes and what the arguments mean."""
    _check_options(prior, kernel_size, sigma, penalty, constraint, padding)
    check_weight("penalty_weight", penalty_weight)
    logits, checked = prepare(input, target, ignore_index)
    votes, weight = neighbor_votes(checked, logits.shape[1], prior, kernel_size, sigma, padding, logits.dtype)
    if constraint == "logits":
        return _LogitsNACL.apply(logits, checked.labels, checked.counted, votes, weight, penalty, penalty_weight)
    difference = F.softmax(logits, dim=1) - votes * weight
    distance = difference.abs() if penalty == "l1" else difference.square()
    return cross_entropy(logits, checked) + penalty_weight * voxel_mean(distance.mean(1), checked.counted)


class _LogitsNACL(torch.autograd.Function):
    """Cross-entropy plus `penalty_weight` times the mean distance of the logits to the prior `votes * weight`.

    Plain operations would make half a dozen float tensors of the size of the logits and keep some for the backward
    pass. This takes one class at a time, keeps the votes (small integers, most often), and makes one such tensor in
    each pass.
    """

    @staticmethod
    def forward(
        ctx,
        logits: Tensor,
        labels: Tensor,
        counted: Tensor | None,
        votes: Tensor,
        weight: Tensor,
        penalty: str,
        penalty_weight: float,
    ) -> Tensor:
        ctx.save_for_backward(logits, labels, counted, votes, weight)
        ctx.penalty, ctx.penalty_weight = penalty, penalty_weight
        total = logits.new_zeros(())
        difference = torch.empty_like(logits[:, :1])
        for k in range(logits.shape[1]):
            _subtract_prior(difference, logits, counted, votes, weight, k)
            total += (difference.abs_() if penalty == "l1" else difference.square_()).sum()
        distance = total / (num_counted(logits, counted) * logits.shape[1])
        return cross_entropy_value(logits, labels, counted) + penalty_weight * distance

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        logits, labels, counted, votes, weight = ctx.saved_tensors
        grad = cross_entropy_slope(logits, labels, counted)
        difference = torch.empty_like(logits[:, :1])
        for k in range(logits.shape[1]):
            _subtract_prior(difference, logits, counted, votes, weight, k)
            slope = difference.sign_() if ctx.penalty == "l1" else difference.mul_(2)
            grad[:, k : k + 1].add_(slope, alpha=ctx.penalty_weight / logits.shape[1])
        return grad.mul_(grad_output / num_counted(logits, counted)), None, None, None, None, None, None


def _subtract_prior(out: Tensor, logits: Tensor, counted: Tensor | None, votes: Tensor, weight: Tensor, k: int) -> None:
    """Fills `out`, `(B, 1, *S)`, with class `k` of `logits - votes * weight`, and 0 at ignored voxels."""
    out.copy_(votes[:, k : k + 1]).mul_(-weight).add_(logits[:, k : k + 1])
    if counted is not None:
        out.mul_(counted.unsqueeze(1))


class NACLLoss(nn.Module):
    """Neighbor-aware calibration loss (NACL): cross-entropy plus a penalty that keeps logits near a prior.

    The loss is `CE + penalty_weight * mean over voxels and classes of P(tau_k - l_k)`, with the logits `l` and the
    prior `tau` that the labels around the voxel give (`neighbor_prior`). Logits can then not grow far beyond what the
    neighbourhood supports, which is what makes a network overconfident.

    The paper's equation 7 sums the penalty over the N classes; the authors' code, which made the paper's tables, takes
    the mean. Here it is the mean: a `penalty_weight` of 0.1 is 0.1 / N in the equation.

    The priors `max`, `min`, `median` and `mode` are taken of class **indices**: they depend on how the classes are
    numbered.

    Murugesan et al., "Trust Your Neighbours: Penalty-Based Constraints for Model Calibration", MICCAI 2023,
    https://arxiv.org/abs/2303.06268

    Shape:
        - input: logits, `(B, N, H, W)` or `(B, N, H, W, D)`; float16 and bfloat16 are computed in float32.
        - target: class index, `(B, 1, *S)` or `(B, *S)`, of any type that holds whole numbers; or probabilities,
          `(B, N, *S)`, with the priors `mean` and `gaussian`.
        - output: a scalar.

    Args:
        prior: "mean" (the paper's choice), "gaussian", "max", "min", "median" or "mode"; see `neighbor_prior`.
        kernel_size: side of the window (square or cube) in voxels, odd.
        sigma: of the prior "gaussian", in voxels.
        penalty: P, "l1" for the absolute value (the paper's choice) or "l2" for the square.
        constraint: what is kept near the prior, "logits" (the paper's choice) or "softmax".
        penalty_weight: lambda.
        padding: labels beyond the image, "replicate", or "background" as in the authors' code; see `neighbor_prior`.
        ignore_index: label of voxels that count neither in the means nor in any window, or None. For class indices
            only. The loss is 0 where every voxel is ignored.

    Raises:
        TypeError: the input is not floating point, or the target not a tensor of numbers.
        ValueError: an unknown option, a negative weight, shapes that do not match, values that are not logits, labels
            or probabilities.

    Example:
        >>> loss = NACLLoss()
        >>> logits = torch.randn(2, 4, 64, 64, requires_grad=True)
        >>> labels = torch.randint(4, (2, 1, 64, 64), dtype=torch.uint8)
        >>> loss(logits, labels).backward()
    """

    def __init__(
        self,
        prior: str = "mean",
        kernel_size: int = 3,
        sigma: float = 2.0,
        penalty: str = "l1",
        constraint: str = "logits",
        penalty_weight: float = 0.1,
        padding: str = "replicate",
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        _check_options(prior, kernel_size, sigma, penalty, constraint, padding)
        check_weight("penalty_weight", penalty_weight)
        self.prior = prior
        self.kernel_size = kernel_size
        self.sigma = sigma
        self.penalty = penalty
        self.constraint = constraint
        self.penalty_weight = penalty_weight
        self.padding = padding
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return nacl_loss(
            input,
            target,
            prior=self.prior,
            kernel_size=self.kernel_size,
            sigma=self.sigma,
            penalty=self.penalty,
            constraint=self.constraint,
            penalty_weight=self.penalty_weight,
            padding=self.padding,
            ignore_index=self.ignore_index,
        )


def _check_options(prior: str, kernel_size: int, sigma: float, penalty: str, constraint: str, padding: str) -> None:
    check_prior(prior, kernel_size, sigma, padding)
    if penalty not in PENALTIES:
        raise ValueError(f"penalty: expected one of {PENALTIES}, got {penalty!r}")
    if constraint not in CONSTRAINTS:
        raise ValueError(f"constraint: expected one of {CONSTRAINTS}, got {constraint!r}")
