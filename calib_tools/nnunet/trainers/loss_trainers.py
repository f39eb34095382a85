"""Trainers of nnU-Net with NACL and the losses that it is compared with.

nnU-Net imports this file by itself, from the folder that the environment variable
`nnUNet_extTrainer` names, and looks for the class that `-tr` names. There is `nnUNetTrainerNAME`
for each `NAMELoss` that can take the place of cross-entropy, and `nnUNetTrainerNACLDice`;
`nnUNetTrainerNAME_5epochs` trains for five epochs.

At full resolution, the cross-entropy in nnU-Net's own loss is replaced by one of our losses. The
lower resolutions of deep supervision keep the cross-entropy: nothing is ever predicted from them,
so their confidence does not matter, and a window of three of their voxels covers 6, 12, 24, ...
voxels of the image, where the labels around a voxel say little about it. Weights of the
resolutions, Dice, optimizer, augmentation and all else are nnU-Net's. With `penalty_weight` 0,
`nnUNetTrainerNACL` is nnU-Net's `nnUNetTrainerCELoss`, and `nnUNetTrainerNACLDice` its default.

The options of a loss, such as `penalty_weight`, are attributes of its trainer. For other values,
derive a class in a file of your own, in another folder that `nnUNet_extTrainer` names; folders are
separated by colons.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import ClassVar

from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.training_length.nnUNetTrainer_Xepochs import (
    nnUNetTrainer_5epochs,
)
from torch import Tensor, nn

from calib_components.errors import InputError
from calib_components.losses import LOSSES, L1ACELoss


class FullResolution(nn.Module):
    """Another loss at full resolution than at the lower ones of deep supervision.

    Args:
        full: Loss at full resolution.
        lower: nnU-Net's loss of all resolutions, with their weights. It gives the full one away.
    """

    def __init__(self, full: nn.Module, lower: DeepSupervisionWrapper) -> None:
        super().__init__()
        self.weight, *others = map(float, lower.weight_factors)
        lower.weight_factors = (0.0, *others)
        self.full, self.lower = full, lower

    def forward(self, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Return the weighted sum over resolutions of `outputs` `(B, N, *S)` and `targets` `(B, 1,
        *S)`.
        """
        return self.weight * self.full(outputs[0], targets[0]) + self.lower(outputs, targets)


class VoxelLossTrainer(nnUNetTrainer):
    """Base of the trainers: nnU-Net's, with another loss in place of the cross-entropy at full
    resolution.
    """

    voxel_loss_class: ClassVar[type[nn.Module]]
    # Arguments of the loss, which are attributes of the trainer
    options: ClassVar[Sequence[str]] = ()
    use_dice = False  # whether Dice is added at every resolution, as in nnU-Net's default

    def voxel_loss(self, ignore_index: int | None) -> nn.Module:
        """Return the loss that takes the place of cross-entropy; `ignore_index` is None if all
        voxels count.
        """
        options = {name: getattr(self, name) for name in self.options}
        return self.voxel_loss_class(**options, ignore_index=ignore_index)

    def _build_loss(self) -> nn.Module:
        if self.label_manager.has_regions:
            raise InputError(
                f"{type(self).__name__} needs classes that exclude each other, but labels in"
                " dataset.json are regions that overlap. Train with nnUNetTrainer and calibrate"
                " its checkpoint."
            )
        # Two of nnU-Net's own losses, so that its options, weights and compilation are those of its
        # version.
        whole, lower = super()._build_loss(), super()._build_loss()
        full = self.voxel_loss(self.label_manager.ignore_label)
        if self.use_dice:
            own = whole.loss if self.enable_deep_supervision else whole
            own.ce, full = full, own
        if not self.enable_deep_supervision:
            return full
        lower.loss.weight_dice *= self.use_dice
        return FullResolution(full, lower)


def _trainer_of(loss: type[nn.Module]) -> type[VoxelLossTrainer]:
    """Return a trainer with a loss, whose options are its attributes."""
    parameters = inspect.signature(loss).parameters.values()
    options = {
        option.name: option.default for option in parameters if option.name != "ignore_index"
    }
    about = {"__module__": __name__, "__doc__": f"Trainer with `{loss.__name__}`."}
    name = f"nnUNetTrainer{loss.__name__.removesuffix('Loss')}"
    return type(
        name,
        (VoxelLossTrainer,),
        {**about, "voxel_loss_class": loss, "options": (*options,), **options},
    )


# L1-ACE is added to cross-entropy and Dice, the others take the place of cross-entropy.
TRAINERS = {
    trainer.__name__: trainer
    for trainer in (
        _trainer_of(loss) for loss in LOSSES.values() if not issubclass(loss, L1ACELoss)
    )
}
TRAINERS["nnUNetTrainerNACLDice"] = type(
    "nnUNetTrainerNACLDice",
    (TRAINERS["nnUNetTrainerNACL"],),
    {"__module__": __name__, "__doc__": "Trainer with `NACLLoss` and Dice.", "use_dice": True},
)
TRAINERS |= {
    f"{name}_5epochs": type(
        f"{name}_5epochs", (trainer, nnUNetTrainer_5epochs), {"__module__": __name__}
    )
    for name, trainer in TRAINERS.items()
}
globals().update(TRAINERS)  # where nnU-Net looks for a class by its name
