"""Cross-entropy, Dice and L1 average calibration error."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from calib_components.arguments import check_ignore_index, check_number
from calib_components.losses import defaults
from calib_components.losses.base import CalibrationLoss
from calib_components.losses.inputs import Target, check_inputs
from calib_components.losses.l1_ace import ace_of_voxels, check_ace_options, true_probabilities
from calib_components.losses.slabs import Slab, mean_over_voxels

SMOOTH = 1e-5  # as in MONAI: the overlap of a class that is neither predicted nor present counts as complete


def l1_ace_dice_ce_loss(
    input: Tensor,
    target: Tensor,
    *,
    penalty_weight: float = defaults.ACE_WEIGHT,
    num_bins: int = defaults.NUM_BINS,
    ignore_empty_classes: bool = defaults.IGNORE_EMPTY_CLASSES,
    ignore_index: int | None = None,
) -> Tensor:
    """Functional form of `L1ACEDiceCELoss`, which documents formula, shapes, options and errors."""
    check_number("penalty_weight", penalty_weight, 0)
    check_ace_options(num_bins, ignore_empty_classes)
    logits, checked = check_inputs(input, target, ignore_index)
    ace = ace_of_voxels(logits, checked, num_bins, ignore_empty_classes)

    def voxel_losses(logits: Tensor, labels: Tensor, slab: Slab) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none") + penalty_weight * ace(logits, labels, slab)

    return mean_over_voxels(voxel_losses, logits, checked) + _dice(logits, checked)


class L1ACEDiceCELoss(CalibrationLoss):
    """Cross-entropy plus Dice plus L1 average calibration error, the loss of the paper on L1-ACE.

    ```python
    dice_ce = DiceCELoss(to_onehot_y=True, softmax=True)
    l1_ace = L1ACELoss(num_bins, ignore_empty_classes)
    loss = dice_ce(input, target.unsqueeze(1)) + penalty_weight * l1_ace(input, target)
    ```

    `DiceCELoss` is that of `monai.losses`, with the same weight of 1 for cross-entropy and for Dice.

    Source: Barfoot et al., "Average Calibration Losses for Reliable Uncertainty in Medical Image Segmentation", IEEE
    Transactions on Medical Imaging 2026, <https://arxiv.org/abs/2506.03942>

    Departures from the authors' code: the three weights, equal there too, are 1 instead of 0.33, and Dice has no
    squares in its denominator, so that the loss differs from `DiceCELoss` in nothing but the added term.

    Shape:
        - input: Logits, `(B, N, H, W)` or `(B, N, H, W, D)`. Float16 and bfloat16 are computed in float32.
        - target: Class indices, `(B, 1, *S)` or `(B, *S)`, of any type that holds whole numbers; or probabilities,
          `(B, N, *S)`.
        - output: A scalar.

    Args:
        penalty_weight: Weight of L1-ACE; those of cross-entropy and Dice are 1. Default: `1.0`.
        num_bins: Number of bins, see `L1ACELoss`. Default: `20`.
        ignore_empty_classes: Whether the calibration error of a class that an image does not contain counts as 0.
            Default: `True`.
        ignore_index: Label of voxels that do not count; for class indices only. If every voxel is ignored, the loss is
            0. Default: `None`.

    Raises:
        TypeError: The input is not floating point, or the target is not a tensor of numbers.
        ValueError: The weight is negative, the number of bins is not from 1 to 10,000, the shapes do not match, or the
            values are not logits, class indices or probabilities.

    Examples:
        >>> import torch
        >>> from calib_components.losses import L1ACEDiceCELoss
        >>> loss = L1ACEDiceCELoss()
        >>> logits = torch.randn(2, 4, 64, 64, requires_grad=True)
        >>> labels = torch.randint(4, (2, 1, 64, 64))
        >>> loss(logits, labels).backward()
    """

    def __init__(
        self,
        penalty_weight: float = defaults.ACE_WEIGHT,
        num_bins: int = defaults.NUM_BINS,
        ignore_empty_classes: bool = defaults.IGNORE_EMPTY_CLASSES,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        check_ignore_index(ignore_index)
        check_number("penalty_weight", penalty_weight, 0)
        check_ace_options(num_bins, ignore_empty_classes)
        self.penalty_weight = penalty_weight
        self.num_bins = num_bins
        self.ignore_empty_classes = ignore_empty_classes
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return l1_ace_dice_ce_loss(
            input,
            target,
            penalty_weight=self.penalty_weight,
            num_bins=self.num_bins,
            ignore_empty_classes=self.ignore_empty_classes,
            ignore_index=self.ignore_index,
        )


def _dice(logits: Tensor, target: Target) -> Tensor:
    """`monai.losses.DiceLoss(softmax=True)`, over the voxels that count and in a form that can be compiled."""
    p = logits.softmax(1)
    y = true_probabilities(target.labels, p)
    if target.mask is not None:
        p, y = p * target.mask.unsqueeze(1), y * target.mask.unsqueeze(1)
    overlap, sizes = (p * y).flatten(2).sum(2), (p + y).flatten(2).sum(2)
    return (1 - (2 * overlap + SMOOTH) / (sizes + SMOOTH)).mean()
