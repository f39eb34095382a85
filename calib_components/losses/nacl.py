"""Neighbor-aware calibration loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from calib_components.errors import check_choice, check_number
from calib_components.losses.base import CalibrationLoss, Extras
from calib_components.losses.priors import PROPORTIONS, Window
from calib_components.losses.targets import Labels


class NACLLoss(CalibrationLoss):
    """Neighbor-aware calibration loss (NACL): cross-entropy plus a penalty that keeps the logits
    near a prior.

    ```python
    prior = neighbor_prior(target, num_classes)
    loss = F.cross_entropy(input, target) + penalty_weight * (prior - input).abs().mean()
    ```

    The prior comes from the labels around each voxel (see `neighbor_prior`). Large logits are what
    makes a network overconfident; the penalty keeps them from growing far beyond what the
    neighbourhood supports.

    Options change these lines as follows: `penalty="l2"` replaces `abs()` by `square()`,
    `constraint="softmax"` replaces `input` in the penalty by `input.softmax(1)`, and `prior`,
    `kernel_size`, `sigma` and `padding` are passed to `neighbor_prior`.

    The penalty is a ceiling for the confidence. Where the window holds a single class `y`, the loss
    is smallest at a probability of exactly `1 - penalty_weight / N` of `y` (0.975 for 4 classes and
    the default weight), with the other logits at 0; as with label smoothing, a network trained to
    the end is no more confident than that, even where it is always right. This holds for
    `penalty="l1"` on the logits with the priors `mean` and `gaussian`, as long as `penalty_weight /
    N < (N - 1) / (e + N - 1)` (a weight below 0.54 for 2 classes); beyond it, the logit of `y` is 1
    and its probability `e / (e + N - 1)`.

    Source: Murugesan et al., "Trust Your Neighbours: Penalty-Based Constraints for Model
    Calibration", MICCAI 2023, equation 7, <https://arxiv.org/abs/2303.06268>

    Departures from the paper: equation 7 sums the penalty over the N classes. Here it is the mean
    over classes, as in the authors' code, which produced the paper's tables; a `penalty_weight` of
    0.1 corresponds to 0.1 / N in the equation. Beyond the image the labels at the border are
    repeated, where the authors' code takes background (`padding="background"`).

    Probabilities as target need the prior `mean` or `gaussian`. Shapes and errors are those of
    `CalibrationLoss`.

    Args:
        prior: `"mean"` (the paper's choice), `"gaussian"`, `"max"`, `"min"`, `"median"` or
            `"mode"`; see `neighbor_prior`. Default: `"mean"`.
        kernel_size: Side length of the window (square or cube) in voxels, odd. Default: `3`.
        sigma: Standard deviation of the prior `"gaussian"` in voxels. Default: `2.0`.
        penalty: `"l1"` for the absolute value (the paper's choice) or `"l2"` for the square.
            Default: `"l1"`.
        constraint: What is kept near the prior, `"logits"` (the paper's choice) or `"softmax"`.
            Default: `"logits"`.
        penalty_weight: Weight of the penalty (the paper's lambda). Default: `0.1`.
        padding: Labels beyond the image, `"replicate"` or `"background"`; see `neighbor_prior`.
            Default: `"replicate"`.
        ignore_index: Label of voxels that count neither in the means nor in any window. Default:
            `None`.

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
        prior: str = "mean",
        kernel_size: int = 3,
        sigma: float = 2.0,
        penalty: str = "l1",
        constraint: str = "logits",
        penalty_weight: float = 0.1,
        padding: str = "replicate",
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(ignore_index)
        self.window = Window(prior, kernel_size, sigma, padding)
        check_choice("penalty", penalty, ("l1", "l2"))
        check_choice("constraint", constraint, ("logits", "softmax"))
        check_number("penalty_weight", penalty_weight, 0)
        self.penalty = penalty
        self.constraint = constraint
        self.penalty_weight = penalty_weight
        self.accepts_probabilities = prior in PROPORTIONS

    def prepare(self, logits: Tensor, labels: Labels) -> Extras:
        return lambda slab: (self.window.prior_of(labels, slab, logits.dtype),)

    def voxel_loss(self, logits: Tensor, labels: Tensor, prior: Tensor) -> Tensor:
        cross_entropy = F.cross_entropy(logits, labels, reduction="none")
        constrained = logits if self.constraint == "logits" else logits.softmax(1)
        difference = constrained - prior
        distance = difference.abs() if self.penalty == "l1" else difference.square()
        return cross_entropy + self.penalty_weight / logits.shape[1] * distance.sum(1)
