"""Label smoothing."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from calib_components.errors import check_number
from calib_components.losses.base import CalibrationLoss


class LabelSmoothingLoss(CalibrationLoss):
    """Label smoothing (LS): cross-entropy with a target that spreads `alpha` evenly over all
    classes.

    ```python
    loss = F.cross_entropy(input, target, label_smoothing=alpha)
    ```

    At each voxel this is `(1 - alpha) * -log s_y + alpha * mean_k(-log s_k)`, with `s =
    softmax(input)` and the voxel's class `y`.

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016,
    section 7, <https://arxiv.org/abs/1512.00567>

    Departures from the paper: none; as there, the smoothing distribution is uniform over the
    classes.

    Shapes and errors are those of `CalibrationLoss`.

    Args:
        alpha: Amount of smoothing, from 0 to 1. Default: `0.1`.
        ignore_index: Label of voxels that do not count, see `CalibrationLoss`. Default: `None`.
    """

    def __init__(self, alpha: float = 0.1, ignore_index: int | None = None) -> None:
        super().__init__(ignore_index)
        check_number("alpha", alpha, 0, 1)
        self.alpha = alpha

    def voxel_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.alpha, reduction="none")
