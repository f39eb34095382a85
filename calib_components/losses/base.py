"""Base of the losses."""

from __future__ import annotations

from typing import Any

from torch import nn

from calib_components.arguments import check_known

# What to do instead of giving an option of MONAI's losses.
HINTS = {
    "reduction": "the loss is always a mean over what counts",
    "to_onehot_y": "class indices are accepted as they are, and so is one-hot where the loss is defined for it",
    "softmax": "give logits, the loss applies softmax itself",
    "use_softmax": "give logits, the loss applies softmax itself",
    "sigmoid": "give logits of N >= 2 classes, the loss applies softmax itself",
    "other_act": "give logits, the loss applies softmax itself",
    "include_background": "every class counts; ignore_index leaves out voxels",
    "weight": "classes are not weighted",
    "classes": "the number of classes is read from the logits",
    "num_classes": "the number of classes is read from the logits",
    "label_smoothing": "LabelSmoothingLoss has it, as alpha",
    "alpha": "the weight of a penalty is called penalty_weight; classes are not weighted",
    "dim": "2D or 3D is read from the logits",
    "kernel_ops": "the option is called prior",
    "distance_type": "the option is called penalty",
    "right": "a probability on an edge belongs to the bin below",
}


class CalibrationLoss(nn.Module):
    """Base of the losses: says what to do instead of giving options that only MONAI's losses have."""

    def __new__(cls, *_: Any, **options: Any) -> Any:
        check_known(cls, options, HINTS)
        return super().__new__(cls)
