"""Focal loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib_components.losses.targets import prepare, voxel_mean


def focal_loss(input: Tensor, target: Tensor, *, gamma: float = 3.0, ignore_index: int | None = None) -> Tensor:
    """Function form of `FocalLoss`, which says what it computes and what the arguments mean."""
    _check_gamma(gamma)
    logits, checked = prepare(input, target, ignore_index)
    if checked.is_soft:
        raise ValueError("target: the focal loss is defined for class indices only, got probabilities")
    log_likelihood = F.log_softmax(logits, dim=1).gather(1, checked.labels.unsqueeze(1)).squeeze(1)
    # 1 - s_y; for gamma < 1 the slope of its power is infinite at 0, where the loss is flat: keep off.
    doubt = -torch.expm1(log_likelihood).clamp(max=-torch.finfo(logits.dtype).tiny)
    return voxel_mean(doubt**gamma * -log_likelihood, checked.counted)


class FocalLoss(nn.Module):
    """Focal loss (FL): cross-entropy in which voxels count less the surer the network is of their class.

    The loss is the mean over voxels of `(1 - s_y) ** gamma * -log s_y`, with `s = softmax(input)`.

    Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, https://arxiv.org/abs/1708.02002; for calibration,
    Mukhoti et al., "Calibrating Deep Neural Networks using Focal Loss", NeurIPS 2020, https://arxiv.org/abs/2002.09437

    Shape:
        - input: logits, `(B, N, H, W)` or `(B, N, H, W, D)`; float16 and bfloat16 are computed in float32.
        - target: class index, `(B, 1, *S)` or `(B, *S)`, of any type that holds whole numbers.
        - output: a scalar.

    Args:
        gamma: 0 is cross-entropy; the larger, the less do sure voxels count.
        ignore_index: label of voxels that do not count, or None. The loss is 0 where every voxel is ignored.

    Raises:
        TypeError: the input is not floating point, or the target not a tensor of numbers.
        ValueError: a negative gamma, shapes that do not match, values that are not logits or labels.

    Example:
        >>> loss = FocalLoss(gamma=2.0)
        >>> logits = torch.randn(2, 4, 64, 64, requires_grad=True)
        >>> labels = torch.randint(4, (2, 1, 64, 64))
        >>> loss(logits, labels).backward()
    """

    def __init__(self, gamma: float = 3.0, ignore_index: int | None = None) -> None:
        super().__init__()
        _check_gamma(gamma)
        self.gamma = gamma
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return focal_loss(input, target, gamma=self.gamma, ignore_index=self.ignore_index)


def _check_gamma(gamma: float) -> None:
    if not gamma >= 0:
        raise ValueError(f"gamma: expected at least 0, got {gamma}")
