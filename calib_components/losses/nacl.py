"""Neighbor-aware calibration loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from calib_components.arguments import check_choice, check_ignore_index, check_number
from calib_components.losses import defaults
from calib_components.losses.base import CalibrationLoss
from calib_components.losses.inputs import check_inputs
from calib_components.losses.priors import check_prior, slab_prior
from calib_components.losses.slabs import Slab, mean_over_voxels

PENALTIES = ("l1", "l2")
CONSTRAINTS = ("logits", "softmax")


def nacl_loss(
    input: Tensor,
    target: Tensor,
    *,
    prior: str = defaults.PRIOR,
    kernel_size: int = defaults.KERNEL_SIZE,
    sigma: float = defaults.SIGMA,
    penalty: str = defaults.PENALTY,
    constraint: str = defaults.CONSTRAINT,
    penalty_weight: float = defaults.PENALTY_WEIGHT,
    padding: str = defaults.PADDING,
    ignore_index: int | None = None,
) -> Tensor:
    """Functional form of `NACLLoss`, which documents formula, shapes, options and errors."""
    _check_options(prior, kernel_size, sigma, penalty, constraint, penalty_weight, padding)
    logits, checked = check_inputs(input, target, ignore_index)

    def voxel_losses(logits: Tensor, labels: Tensor, slab: Slab) -> Tensor:
        expected = slab_prior(checked, slab, logits.shape[1], prior, kernel_size, sigma, padding, logits.dtype)
        difference = (logits if constraint == "logits" else logits.softmax(1)) - expected
        distance = difference.abs() if penalty == "l1" else difference.square()
        return F.cross_entropy(logits, labels, reduction="none") + penalty_weight / logits.shape[1] * distance.sum(1)

    return mean_over_voxels(voxel_losses, logits, checked)


class NACLLoss(CalibrationLoss):
    """Neighbor-aware calibration loss (NACL): cross-entropy plus a penalty that keeps the logits near a prior.

    ```python
    prior = neighbor_prior(target, num_classes)
    loss = F.cross_entropy(input, target) + penalty_weight * (prior - input).abs().mean()
    ```

    The prior comes from the labels around each voxel (see `neighbor_prior`). Large logits are what makes a network
    overconfident; the penalty keeps them from growing far beyond what the neighbourhood supports.

    Options change these lines as follows: `penalty="l2"` replaces `abs()` by `square()`, `constraint="softmax"`
    replaces `input` in the penalty by `input.softmax(1)`, and `prior`, `kernel_size`, `sigma` and `padding` are passed
    to `neighbor_prior`. The priors `max`, `min`, `median` and `mode` are taken over class **indices**, so they depend
    on how the classes are numbered.

    The penalty is a ceiling for the confidence. Where the window holds a single class `y`, the loss is smallest at a
    probability of exactly `1 - penalty_weight / N` of `y` (0.975 for 4 classes and the default weight), with the other
    logits at 0; as with label smoothing, a network trained to the end is no more confident than that, even where it is
    always right. This holds for `penalty="l1"` on the logits with the priors `mean` and `gaussian`, as long as
    `penalty_weight / N < (N - 1) / (e + N - 1)` (a weight below 0.54 for 2 classes); beyond it, the logit of `y` is 1
    and its probability `e / (e + N - 1)`.

    Source: Murugesan et al., "Trust Your Neighbours: Penalty-Based Constraints for Model Calibration", MICCAI 2023,
    equation 7, <https://arxiv.org/abs/2303.06268>

    Departures from the paper: equation 7 sums the penalty over the N classes. Here it is the mean over classes, as in
    the authors' code, which produced the paper's tables; a `penalty_weight` of 0.1 corresponds to 0.1 / N in the
    equation. Beyond the image the labels at the border are repeated, where the authors' code takes background
    (`padding="background"`).

    Shape:
        - input: Logits, `(B, N, H, W)` or `(B, N, H, W, D)`. Float16 and bfloat16 are computed in float32.
        - target: Class indices, `(B, 1, *S)` or `(B, *S)`, of any type that holds whole numbers; or probabilities,
          `(B, N, *S)`, with the priors `mean` and `gaussian`.
        - output: A scalar.

    Args:
        prior: `"mean"` (the paper's choice), `"gaussian"`, `"max"`, `"min"`, `"median"` or `"mode"`; see
            `neighbor_prior`. Default: `"mean"`.
        kernel_size: Side length of the window (square or cube) in voxels, odd. Default: `3`.
        sigma: Standard deviation of the prior `"gaussian"` in voxels. Default: `2.0`.
        penalty: `"l1"` for the absolute value (the paper's choice) or `"l2"` for the square. Default: `"l1"`.
        constraint: What is kept near the prior, `"logits"` (the paper's choice) or `"softmax"`. Default: `"logits"`.
        penalty_weight: Weight of the penalty (the paper's lambda). Default: `0.1`.
        padding: Labels beyond the image, `"replicate"` or `"background"`; see `neighbor_prior`. Default: `"replicate"`.
        ignore_index: Label of voxels that count neither in the means nor in any window; for class indices only. If
            every voxel is ignored, the loss is 0. Default: `None`.

    Raises:
        TypeError: The input is not floating point, or the target is not a tensor of numbers.
        ValueError: An option has an unknown value or the weight is negative, the shapes do not match, or the values are
            not logits, class indices or probabilities.

    Examples:
        >>> import torch
        >>> from calib_components.losses import NACLLoss
        >>> loss = NACLLoss()
        >>> logits = torch.randn(2, 4, 64, 64, requires_grad=True)
        >>> labels = torch.randint(4, (2, 1, 64, 64), dtype=torch.uint8)
        >>> loss(logits, labels).backward()
    """

    def __init__(
        self,
        prior: str = defaults.PRIOR,
        kernel_size: int = defaults.KERNEL_SIZE,
        sigma: float = defaults.SIGMA,
        penalty: str = defaults.PENALTY,
        constraint: str = defaults.CONSTRAINT,
        penalty_weight: float = defaults.PENALTY_WEIGHT,
        padding: str = defaults.PADDING,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        check_ignore_index(ignore_index)
        _check_options(prior, kernel_size, sigma, penalty, constraint, penalty_weight, padding)
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


def _check_options(
    prior: str, kernel_size: int, sigma: float, penalty: str, constraint: str, penalty_weight: float, padding: str
) -> None:
    check_prior(prior, kernel_size, sigma, padding)
    check_choice("penalty", penalty, PENALTIES)
    check_choice("constraint", constraint, CONSTRAINTS)
    check_number("penalty_weight", penalty_weight, 0)
