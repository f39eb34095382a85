"""Label smoothing."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from calib_components.arguments import check_ignore_index, check_number
from calib_components.losses import defaults
from calib_components.losses.base import CalibrationLoss
from calib_components.losses.inputs import check_inputs
from calib_components.losses.slabs import Slab, mean_over_voxels


def label_smoothing_loss(
    input: Tensor, target: Tensor, *, alpha: float = defaults.ALPHA, ignore_index: int | None = None
) -> Tensor:
    """Functional form of `LabelSmoothingLoss`, which documents formula, shapes, options and errors."""
    check_number("alpha", alpha, 0, 1)
    logits, checked = check_inputs(input, target, ignore_index)

    def voxel_losses(logits: Tensor, labels: Tensor, _: Slab) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=alpha, reduction="none")

    return mean_over_voxels(voxel_losses, logits, checked)


class LabelSmoothingLoss(CalibrationLoss):
    """Label smoothing (LS): cross-entropy with a target that spreads `alpha` evenly over all classes.

    ```python
    loss = F.cross_entropy(input, target, label_smoothing=alpha)
    ```

    At each voxel this is `(1 - alpha) * -log s_y + alpha * mean_k(-log s_k)`, with `s = softmax(input)` and the voxel's
    class `y`.

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, section 7,
    <https://arxiv.org/abs/1512.00567>

    Departures from the paper: none; as there, the smoothing distribution is uniform over the classes.

    Shape:
        - input: Logits, `(B, N, H, W)` or `(B, N, H, W, D)`. Float16 and bfloat16 are computed in float32.
        - target: Class indices, `(B, 1, *S)` or `(B, *S)`, of any type that holds whole numbers; or probabilities,
          `(B, N, *S)`.
        - output: A scalar.

    Args:
        alpha: Amount of smoothing, from 0 to 1. Default: `0.1`.
        ignore_index: Label of voxels that do not count; for class indices only. If every voxel is ignored, the loss is
            0. Default: `None`.

    Raises:
        TypeError: The input is not floating point, or the target is not a tensor of numbers.
        ValueError: Alpha is out of range, the shapes do not match, or the values are not logits, class indices or
            probabilities.

    Examples:
        >>> import torch
        >>> from calib_components.losses import LabelSmoothingLoss
        >>> loss = LabelSmoothingLoss(alpha=0.2)
        >>> logits = torch.randn(2, 4, 64, 64, requires_grad=True)
        >>> labels = torch.randint(4, (2, 1, 64, 64))
        >>> loss(logits, labels).backward()
    """

    def __init__(self, alpha: float = defaults.ALPHA, ignore_index: int | None = None) -> None:
        super().__init__()
        check_ignore_index(ignore_index)
        check_number("alpha", alpha, 0, 1)
        self.alpha = alpha
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return label_smoothing_loss(input, target, alpha=self.alpha, ignore_index=self.ignore_index)
