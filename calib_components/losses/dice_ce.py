"""Cross-entropy and Dice over the voxels that count."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from calib_components.errors import check_number
from calib_components.losses.base import CalibrationLoss
from calib_components.losses.targets import Labels

# As in MONAI: the overlap of a class that is neither predicted nor present counts as complete
SMOOTH = 1e-5


class DiceCELoss(CalibrationLoss):
    """Cross-entropy plus Dice, `monai.losses.DiceCELoss(to_onehot_y=True, softmax=True)`, which can
    leave voxels out.

    Patches of a 3D network are padded where a volume is smaller, and what a network says of padding
    must not count.

    Shapes and errors are those of `CalibrationLoss`.

    Args:
        dice_weight: Weight of Dice; that of cross-entropy is 1. Default: `1.0`.
        ignore_index: Label of voxels that do not count, see `CalibrationLoss`. Default: `None`.
    """

    def __init__(self, dice_weight: float = 1.0, ignore_index: int | None = None) -> None:
        super().__init__(ignore_index)
        check_number("dice_weight", dice_weight, 0)
        self.dice_weight = dice_weight

    def mean(self, logits: Tensor, labels: Labels) -> Tensor:
        mean = super().mean(logits, labels)
        if self.dice_weight:
            mean = mean + self.dice_weight * dice_loss(logits, labels)
        return mean

    def voxel_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")


def dice_loss(logits: Tensor, labels: Labels) -> Tensor:
    """`monai.losses.DiceLoss(softmax=True)`, over the voxels that count."""
    every = slice(None)
    p = labels.zero_ignored(logits.softmax(1), every)
    y = labels.probabilities(every, logits.dtype)
    overlap = (p * y).flatten(2).sum(2)
    sizes = (p + y).flatten(2).sum(2)
    return (1 - (2 * overlap + SMOOTH) / (sizes + SMOOTH)).mean()
