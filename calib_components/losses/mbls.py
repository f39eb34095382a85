"""Margin-based label smoothing."""

from __future__ import annotations

from torch import Tensor, nn

from calib_components.losses.targets import check_weight, cross_entropy, prepare, voxel_mean


def mbls_loss(
    input: Tensor, target: Tensor, *, margin: float = 5.0, penalty_weight: float = 0.1, ignore_index: int | None = None
) -> Tensor:
    """Function form of `MbLSLoss`, which says what it computes and what the arguments mean."""
    check_weight("margin", margin)
    check_weight("penalty_weight", penalty_weight)
    logits, checked = prepare(input, target, ignore_index)
    excess = (logits.max(1, keepdim=True).values - margin - logits).relu_()
    return cross_entropy(logits, checked) + penalty_weight * voxel_mean(excess.mean(1), checked.counted)


class MbLSLoss(nn.Module):
    """Margin-based label smoothing (MbLS): cross-entropy plus a penalty on logits far below the largest.

    The loss is `CE + penalty_weight * mean over voxels and classes of relu(max_j l_j - l_k - margin)`: logits may
    differ by up to the margin for free.

    Liu et al., "The Devil is in the Margin: Margin-Based Label Smoothing for Network Calibration", CVPR 2022,
    https://arxiv.org/abs/2111.15430

    Shape:
        - input: logits, `(B, N, H, W)` or `(B, N, H, W, D)`; float16 and bfloat16 are computed in float32.
        - target: class index, `(B, 1, *S)` or `(B, *S)`, of any type that holds whole numbers; or probabilities,
          `(B, N, *S)`.
        - output: a scalar.

    Args:
        margin: m, how far apart logits may be.
        penalty_weight: lambda. The mean over voxels is over classes too, as in the authors' code.
        ignore_index: label of voxels that do not count, or None. For class indices only. The loss is 0 where every
            voxel is ignored.

    Raises:
        TypeError: the input is not floating point, or the target not a tensor of numbers.
        ValueError: a negative margin or weight, shapes that do not match, values that are not logits, labels or
            probabilities.

    Example:
        >>> loss = MbLSLoss(margin=10.0)
        >>> logits = torch.randn(2, 4, 64, 64, requires_grad=True)
        >>> labels = torch.randint(4, (2, 1, 64, 64))
        >>> loss(logits, labels).backward()
    """

    def __init__(self, margin: float = 5.0, penalty_weight: float = 0.1, ignore_index: int | None = None) -> None:
        super().__init__()
        check_weight("margin", margin)
        check_weight("penalty_weight", penalty_weight)
        self.margin = margin
        self.penalty_weight = penalty_weight
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return mbls_loss(
            input,
            target,
            margin=self.margin,
            penalty_weight=self.penalty_weight,
            ignore_index=self.ignore_index,
        )
