"""Label smoothing."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from calib_components.losses.targets import prepare, voxel_mean


def label_smoothing_loss(
    input: Tensor, target: Tensor, *, alpha: float = 0.1, ignore_index: int | None = None
) -> Tensor:
    """Function form of `LabelSmoothingLoss`, which says what it computes and what the arguments mean."""
    _check_alpha(alpha)
    logits, checked = prepare(input, target, ignore_index)
    of_voxels = F.cross_entropy(logits, checked.labels, label_smoothing=alpha, reduction="none")
    return voxel_mean(of_voxels, checked.counted)


class LabelSmoothingLoss(nn.Module):
    """Label smoothing (LS): cross-entropy with a target that gives each class a share of `alpha`.

    The loss is the mean over voxels of `(1 - alpha) * -log s_y + alpha * mean_k(-log s_k)`, with `s = softmax(input)`.

    Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016,
    https://arxiv.org/abs/1512.00567

    Shape:
        - input: logits, `(B, N, H, W)` or `(B, N, H, W, D)`; float16 and bfloat16 are computed in float32.
        - target: class index, `(B, 1, *S)` or `(B, *S)`, of any type that holds whole numbers; or probabilities,
          `(B, N, *S)`.
        - output: a scalar.

    Args:
        alpha: how much of the label is spread evenly over all classes, from 0 to 1.
        ignore_index: label of voxels that do not count, or None. For class indices only. The loss is 0 where every
            voxel is ignored.

    Raises:
        TypeError: the input is not floating point, or the target not a tensor of numbers.
        ValueError: alpha out of range, shapes that do not match, values that are not logits, labels or probabilities.

    Example:
        >>> loss = LabelSmoothingLoss(alpha=0.2)
        >>> logits = torch.randn(2, 4, 64, 64, requires_grad=True)
        >>> labels = torch.randint(4, (2, 1, 64, 64))
        >>> loss(logits, labels).backward()
    """

    def __init__(self, alpha: float = 0.1, ignore_index: int | None = None) -> None:
        super().__init__()
        _check_alpha(alpha)
        self.alpha = alpha
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return label_smoothing_loss(input, target, alpha=self.alpha, ignore_index=self.ignore_index)


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected a number from 0 to 1, got {alpha}")
