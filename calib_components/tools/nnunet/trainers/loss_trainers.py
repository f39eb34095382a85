"""Trainers of nnU-Net with NACL and the losses that it is compared with.

nnU-Net imports this file by itself, from the folder that the environment variable `nnUNet_extTrainer` names, and looks
for the class that `-tr` names.

At full resolution, the cross-entropy in nnU-Net's own loss is replaced by one of our losses. The lower resolutions of
deep supervision keep the cross-entropy: nothing is ever predicted from them, so their confidence does not matter, and
a window of three of their voxels covers 6, 12, 24, ... voxels of the image, where the labels around a voxel say little
about it. Weights of the resolutions, Dice, optimizer, augmentation and all else are nnU-Net's. With `penalty_weight` 0,
`nnUNetTrainerNACL` is nnU-Net's `nnUNetTrainerCELoss`, and `nnUNetTrainerNACLDice` its default.

For other settings, derive a class in a file of your own, in another folder that `nnUNet_extTrainer` names; folders are
separated by colons.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from calib_components.errors import InputError
from calib_components.losses import (
    EntropyPenaltyLoss,
    FocalLoss,
    LabelSmoothingLoss,
    MbLSLoss,
    NACLLoss,
    SVLSLoss,
)

CUDA = torch.device("cuda")


class FullResolution(nn.Module):
    """Another loss at full resolution than at the lower ones of deep supervision.

    Args:
        full: Loss at full resolution.
        lower: Loss at all lower resolutions.
        weights: Weight of each resolution, from the full one down. Those of weight 0 are not computed.
    """

    def __init__(self, full: nn.Module, lower: nn.Module, weights: Sequence[float]) -> None:
        super().__init__()
        self.full = full
        self.lower = lower
        self.weights = tuple(map(float, weights))

    def forward(self, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Return the weighted sum over resolutions of `outputs` `(B, N, *S)` and `targets` `(B, 1, *S)`."""
        total = self.weights[0] * self.full(outputs[0], targets[0])
        for weight, output, target in zip(self.weights[1:], outputs[1:], targets[1:], strict=True):
            if weight:
                total = total + weight * self.lower(output, target)
        return total


class VoxelLossTrainer(nnUNetTrainer, ABC):
    """Base of the trainers: nnU-Net's, with another loss in place of the cross-entropy at full resolution."""

    use_dice = False  # whether Dice is added at every resolution, as in nnU-Net's default

    @abstractmethod
    def voxel_loss(self, ignore_index: int | None) -> nn.Module:
        """Return the loss that takes the place of cross-entropy.

        Args:
            ignore_index: Label of voxels to leave out; None if the data set has none.
        """

    def _build_loss(self) -> nn.Module:
        if self.label_manager.has_regions:
            raise InputError(
                "labels in dataset.json: expected classes that exclude each other, got regions that overlap; "
                f"the loss of {type(self).__name__} is one of a softmax, and regions have a sigmoid each. Train with "
                "nnUNetTrainer and calibrate its checkpoint"
            )
        # Two of nnU-Net's own losses, so that its options, weights and compilation are those of its version.
        full, lower = super()._build_loss(), super()._build_loss()
        weights = [1.0]
        if self.enable_deep_supervision:
            weights, full, lower = full.weight_factors, full.loss, lower.loss
        voxel_loss = self.voxel_loss(self.label_manager.ignore_label)
        cross_entropy = getattr(lower, "ce", lower)
        is_alone = cross_entropy is lower
        # Others are those of a trainer that this one is combined with.
        if type(cross_entropy) is not RobustCrossEntropyLoss or (self.use_dice and is_alone):
            raise InputError(
                f"{type(self).__name__}: expected nnU-Net's cross-entropy with Dice, of which the former is "
                f"replaced, got {type(lower).__name__}"
            )
        if self.use_dice:
            full.ce = voxel_loss
        else:  # without Dice, nnU-Net's loss of voxels that are all ignored is a number without a gradient
            full = voxel_loss
            if not is_alone:
                lower.weight_dice = 0
        return FullResolution(full, lower, weights) if self.enable_deep_supervision else full


class nnUNetTrainerNACL(VoxelLossTrainer):  # noqa: N801
    """Trainer with `NACLLoss`: cross-entropy with a penalty that ties logits to the labels around each voxel."""

    penalty_weight = 0.1

    def voxel_loss(self, ignore_index: int | None) -> nn.Module:
        """Return the loss, see `VoxelLossTrainer`."""
        return NACLLoss(penalty_weight=self.penalty_weight, ignore_index=ignore_index)


class nnUNetTrainerNACLDice(nnUNetTrainerNACL):  # noqa: N801
    """Trainer with `NACLLoss` and Dice."""

    use_dice = True


class nnUNetTrainerSVLS(VoxelLossTrainer):  # noqa: N801
    """Trainer with `SVLSLoss`: labels smoothed over their neighbours."""

    sigma = 2.0

    def voxel_loss(self, ignore_index: int | None) -> nn.Module:
        """Return the loss, see `VoxelLossTrainer`."""
        return SVLSLoss(sigma=self.sigma, ignore_index=ignore_index)


class nnUNetTrainerMbLS(VoxelLossTrainer):  # noqa: N801
    """Trainer with `MbLSLoss`: cross-entropy with a penalty on margins between logits."""

    margin = 5.0
    penalty_weight = 0.1

    def voxel_loss(self, ignore_index: int | None) -> nn.Module:
        """Return the loss, see `VoxelLossTrainer`."""
        return MbLSLoss(margin=self.margin, penalty_weight=self.penalty_weight, ignore_index=ignore_index)


class nnUNetTrainerFocal(VoxelLossTrainer):  # noqa: N801
    """Trainer with `FocalLoss`."""

    gamma = 3.0

    def voxel_loss(self, ignore_index: int | None) -> nn.Module:
        """Return the loss, see `VoxelLossTrainer`."""
        return FocalLoss(gamma=self.gamma, ignore_index=ignore_index)


class nnUNetTrainerLabelSmoothing(VoxelLossTrainer):  # noqa: N801
    """Trainer with `LabelSmoothingLoss`."""

    alpha = 0.1

    def voxel_loss(self, ignore_index: int | None) -> nn.Module:
        """Return the loss, see `VoxelLossTrainer`."""
        return LabelSmoothingLoss(alpha=self.alpha, ignore_index=ignore_index)


class nnUNetTrainerEntropyPenalty(VoxelLossTrainer):  # noqa: N801
    """Trainer with `EntropyPenaltyLoss`: cross-entropy with a penalty on confident predictions."""

    penalty_weight = 0.1

    def voxel_loss(self, ignore_index: int | None) -> nn.Module:
        """Return the loss, see `VoxelLossTrainer`."""
        return EntropyPenaltyLoss(penalty_weight=self.penalty_weight, ignore_index=ignore_index)


class FiveEpochs(nnUNetTrainer):
    """Five epochs instead of a thousand, to see whether everything works."""

    def __init__(
        self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device = CUDA
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 5


class nnUNetTrainerNACL_5epochs(FiveEpochs, nnUNetTrainerNACL):  # noqa: N801
    """`nnUNetTrainerNACL` for five epochs."""


class nnUNetTrainerNACLDice_5epochs(FiveEpochs, nnUNetTrainerNACLDice):  # noqa: N801
    """`nnUNetTrainerNACLDice` for five epochs."""


class nnUNetTrainerSVLS_5epochs(FiveEpochs, nnUNetTrainerSVLS):  # noqa: N801
    """`nnUNetTrainerSVLS` for five epochs."""


class nnUNetTrainerMbLS_5epochs(FiveEpochs, nnUNetTrainerMbLS):  # noqa: N801
    """`nnUNetTrainerMbLS` for five epochs."""


class nnUNetTrainerFocal_5epochs(FiveEpochs, nnUNetTrainerFocal):  # noqa: N801
    """`nnUNetTrainerFocal` for five epochs."""


class nnUNetTrainerLabelSmoothing_5epochs(FiveEpochs, nnUNetTrainerLabelSmoothing):  # noqa: N801
    """`nnUNetTrainerLabelSmoothing` for five epochs."""


class nnUNetTrainerEntropyPenalty_5epochs(FiveEpochs, nnUNetTrainerEntropyPenalty):  # noqa: N801
    """`nnUNetTrainerEntropyPenalty` for five epochs."""
