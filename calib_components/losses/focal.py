"""Focal loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from calib_components.errors import check_number
from calib_components.losses.base import CalibrationLoss


class FocalLoss(CalibrationLoss):
    """Focal loss (FL): cross-entropy that gives less weight to voxels whose class is predicted with
    confidence.

    ```python
    cross_entropy = F.cross_entropy(input, target, reduction="none")
    loss = ((1 - torch.exp(-cross_entropy)) ** gamma * cross_entropy).mean()
    ```

    `torch.exp(-cross_entropy)` is the predicted probability of the voxel's class.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017,
    <https://arxiv.org/abs/1708.02002>; for calibration, Mukhoti et al., "Calibrating Deep Neural
    Networks using Focal Loss", NeurIPS 2020, <https://arxiv.org/abs/2002.09437>

    Departures from Lin et al.: softmax over N classes instead of one sigmoid, no class weights
    (their alpha), and the mean over all voxels that count, as in Mukhoti et al. and the NACL paper.

    The target holds class indices. Shapes and errors are those of `CalibrationLoss`.

    Args:
        gamma: Focusing parameter. 0 gives cross-entropy; larger values give less weight to
            confident voxels. Default: `3.0`.
        ignore_index: Label of voxels that do not count, see `CalibrationLoss`. Default: `None`.
    """

    accepts_probabilities = False

    def __init__(self, gamma: float = 3.0, ignore_index: int | None = None) -> None:
        super().__init__(ignore_index)
        check_number("gamma", gamma, 0)
        self.gamma = gamma

    def voxel_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        cross_entropy = F.cross_entropy(logits, labels, reduction="none")
        # s_y is the probability of the voxel's class. For gamma < 1 the derivative of (1 - s_y) **
        # gamma is infinite at s_y = 1, so 1 - s_y is kept above 0.
        one_minus_s = -torch.expm1(-cross_entropy).clamp(max=-torch.finfo(logits.dtype).tiny)
        return one_minus_s**self.gamma * cross_entropy
