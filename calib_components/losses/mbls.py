"""Margin-based label smoothing."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from calib_components.errors import check_number
from calib_components.losses.base import CalibrationLoss


class MbLSLoss(CalibrationLoss):
    """Margin-based label smoothing (MbLS): cross-entropy plus a penalty on logits far below the
    largest.

    ```python
    excess = F.relu(input.amax(1, keepdim=True) - input - margin)
    loss = F.cross_entropy(input, target) + penalty_weight * excess.mean()
    ```

    Differences between logits of up to `margin` are not penalised.

    Source: Liu et al., "The Devil is in the Margin: Margin-Based Label Smoothing for Network
    Calibration", CVPR 2022, <https://arxiv.org/abs/2111.15430>

    Departure from the paper: its penalty is the sum over the N classes. Here it is the mean over
    classes, as in the authors' code, so a `penalty_weight` of 0.1 corresponds to 0.1 / N in the
    paper's equation.

    Shapes and errors are those of `CalibrationLoss`.

    Args:
        margin: Largest difference to the largest logit that is not penalised (the paper's m).
            Default: `5.0`.
        penalty_weight: Weight of the penalty (the paper's lambda). Default: `0.1`.
        ignore_index: Label of voxels that do not count, see `CalibrationLoss`. Default: `None`.
    """

    def __init__(
        self, margin: float = 5.0, penalty_weight: float = 0.1, ignore_index: int | None = None
    ) -> None:
        super().__init__(ignore_index)
        check_number("margin", margin, 0)
        check_number("penalty_weight", penalty_weight, 0)
        self.margin = margin
        self.penalty_weight = penalty_weight

    def voxel_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        excess = F.relu(logits.amax(1, keepdim=True) - logits - self.margin)
        penalty = self.penalty_weight / logits.shape[1] * excess.sum(1)
        return F.cross_entropy(logits, labels, reduction="none") + penalty
