"""Neighbor-aware calibration loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib_components.losses.priors import check_prior, neighbor_votes
from calib_components.losses.targets import cross_entropy, num_counted, prepare

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
    logits, checked = prepare(input, target, ignore_index)
    votes, weight = neighbor_votes(checked, logits.shape[1], prior, kernel_size, sigma, padding, logits.dtype)
    constrained = logits if constraint == "logits" else F.softmax(logits, dim=1)
    distance = _PriorDistance.apply(constrained, votes, weight, checked.counted, penalty)
    return cross_entropy(logits, checked) + penalty_weight * distance


class _PriorDistance(torch.autograd.Function):
    """Mean over voxels and classes of `|x - votes * weight|` (l1) or its square (l2).

    Between the passes it keeps the votes, most often small integers, where plain operations would keep a float tensor.
    """

    @staticmethod
    def forward(ctx, x: Tensor, votes: Tensor, weight: Tensor, counted: Tensor | None, penalty: str) -> Tensor:
        ctx.save_for_backward(x, votes, weight, counted)
        ctx.penalty = penalty
        difference = _subtract_prior(x, votes, weight, counted)
        total = (difference.abs_() if penalty == "l1" else difference.square_()).sum()
        return total / (num_counted(x, counted) * x.shape[1])

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        x, votes, weight, counted = ctx.saved_tensors
        difference = _subtract_prior(x, votes, weight, counted)
        slope = difference.sign_() if ctx.penalty == "l1" else difference.mul_(2)
        return slope.mul_(grad_output / (num_counted(x, counted) * x.shape[1])), None, None, None, None


def _subtract_prior(x: Tensor, votes: Tensor, weight: Tensor, counted: Tensor | None) -> Tensor:
    """`x - votes * weight`, and 0 at ignored voxels, in a new tensor."""
    difference = votes.to(x.dtype, copy=True).mul_(-weight).add_(x)
    return difference if counted is None else difference.mul_(counted.unsqueeze(1))


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
        TypeError: the input is not floating point.
        ValueError: an unknown option, shapes that do not match, values that are not logits, labels or probabilities.

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
