"""Cross-entropy, Dice and L1 average calibration error."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from calib_components.errors import check_number
from calib_components.losses.dice_ce import dice_loss
from calib_components.losses.l1_ace import L1ACELoss
from calib_components.losses.targets import Labels


class L1ACEDiceCELoss(L1ACELoss):
    """Cross-entropy plus Dice plus L1 average calibration error, the loss of the paper on L1-ACE.

    ```python
    dice_ce = DiceCELoss(to_onehot_y=True, softmax=True)
    l1_ace = L1ACELoss(num_bins, ignore_empty_classes)
    loss = dice_ce(input, target.unsqueeze(1)) + penalty_weight * l1_ace(input, target)
    ```

    `DiceCELoss` is that of `monai.losses`, with the same weight of 1 for cross-entropy and for
    Dice.

    Source: Barfoot et al., "Average Calibration Losses for Reliable Uncertainty in Medical Image
    Segmentation", IEEE Transactions on Medical Imaging 2026, <https://arxiv.org/abs/2506.03942>

    Departures from the authors' code: the three weights, equal there too, are 1 instead of 0.33,
    and Dice has no squares in its denominator, so that the loss differs from `DiceCELoss` in
    nothing but the added term.

    Shapes and errors are those of `CalibrationLoss`.

    Args:
        penalty_weight: Weight of L1-ACE; those of cross-entropy and Dice are 1. Default: `1.0`.
        num_bins: Number of bins, see `L1ACELoss`. Default: `20`.
        ignore_empty_classes: See `L1ACELoss`. Default: `True`.
        ignore_index: Label of voxels that do not count, see `CalibrationLoss`. Default: `None`.
    """

    def __init__(
        self,
        penalty_weight: float = 1.0,
        num_bins: int = 20,
        ignore_empty_classes: bool = True,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(num_bins, ignore_empty_classes, ignore_index)
        check_number("penalty_weight", penalty_weight, 0)
        self.penalty_weight = penalty_weight

    def mean(self, logits: Tensor, labels: Labels) -> Tensor:
        return super().mean(logits, labels) + dice_loss(logits, labels)

    def voxel_loss(self, logits: Tensor, labels: Tensor, factors: Tensor) -> Tensor:
        cross_entropy = F.cross_entropy(logits, labels, reduction="none")
        return cross_entropy + self.penalty_weight * super().voxel_loss(logits, labels, factors)
