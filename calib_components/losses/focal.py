"""Focal loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from calib_components.arguments import check_ignore_index, check_number
from calib_components.losses import defaults
from calib_components.losses.base import CalibrationLoss
from calib_components.losses.inputs import check_inputs
from calib_components.losses.slabs import Slab, mean_over_voxels


def focal_loss(
    input: Tensor, target: Tensor, *, gamma: float = defaults.GAMMA, ignore_index: int | None = None
) -> Tensor:
    """Functional form of `FocalLoss`, which documents formula, shapes, options and errors."""
    check_number("gamma", gamma, 0)
    logits, checked = check_inputs(input, target, ignore_index)
    if checked.is_soft:
        raise ValueError("target: expected class indices for the focal loss, got probabilities")

    def voxel_losses(logits: Tensor, labels: Tensor, _: Slab) -> Tensor:
        cross_entropy = F.cross_entropy(logits, labels, reduction="none")
        # For gamma < 1 the derivative of (1 - s_y) ** gamma is infinite at s_y = 1, so 1 - s_y is kept above 0.
        one_minus_s = -torch.expm1(-cross_entropy).clamp(max=-torch.finfo(logits.dtype).tiny)
        return one_minus_s**gamma * cross_entropy

    return mean_over_voxels(voxel_losses, logits, checked)


class FocalLoss(CalibrationLoss):
    """Focal loss (FL): cross-entropy that gives less weight to voxels whose class is predicted with confidence.

    ```python
    cross_entropy = F.cross_entropy(input, target, reduction="none")
    loss = ((1 - torch.exp(-cross_entropy)) ** gamma * cross_entropy).mean()
    ```

    `torch.exp(-cross_entropy)` is the predicted probability of the voxel's class.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, <https://arxiv.org/abs/1708.02002>; for
    calibration, Mukhoti et al., "Calibrating Deep Neural Networks using Focal Loss", NeurIPS 2020,
    <https://arxiv.org/abs/2002.09437>

    Departures from Lin et al.: softmax over N classes instead of one sigmoid, no class weights (their alpha), and the
    mean over all voxels that count, as in Mukhoti et al. and the NACL paper.

    Shape:
        - input: Logits, `(B, N, H, W)` or `(B, N, H, W, D)`. Float16 and bfloat16 are computed in float32.
        - target: Class indices, `(B, 1, *S)` or `(B, *S)`, of any type that holds whole numbers.
        - output: A scalar.

    Args:
        gamma: Focusing parameter. 0 gives cross-entropy; larger values give less weight to confident voxels. Default:
            `3.0`.
        ignore_index: Label of voxels that do not count. If every voxel is ignored, the loss is 0. Default: `None`.

    Raises:
        TypeError: The input is not floating point, or the target is not a tensor of numbers.
        ValueError: Gamma is negative, the shapes do not match, or the values are not logits or class indices.

    Examples:
        >>> import torch
        >>> from calib_components.losses import FocalLoss
        >>> loss = FocalLoss(gamma=2.0)
        >>> logits = torch.randn(2, 4, 64, 64, requires_grad=True)
        >>> labels = torch.randint(4, (2, 1, 64, 64))
        >>> loss(logits, labels).backward()
    """

    def __init__(self, gamma: float = defaults.GAMMA, ignore_index: int | None = None) -> None:
        super().__init__()
        check_ignore_index(ignore_index)
        check_number("gamma", gamma, 0)
        self.gamma = gamma
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return focal_loss(input, target, gamma=self.gamma, ignore_index=self.ignore_index)
