"""Entropy penalty."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from calib_components.losses.targets import check_weight, cross_entropy, prepare, voxel_mean


def entropy_penalty_loss(
    input: Tensor, target: Tensor, *, penalty_weight: float = 0.1, ignore_index: int | None = None
) -> Tensor:
    """Function form of `EntropyPenaltyLoss`, which says what it computes and what the arguments mean."""
    check_weight("penalty_weight", penalty_weight)
    logits, checked = prepare(input, target, ignore_index)
    log_probabilities = F.log_softmax(logits, dim=1)
    entropy = -(log_probabilities.exp() * log_probabilities).mean(1)
    return cross_entropy(logits, checked) - penalty_weight * voxel_mean(entropy, checked.counted)


class EntropyPenaltyLoss(nn.Module):
    """Entropy penalty (ECP, explicit confidence penalty): cross-entropy minus the entropy of the prediction.

    The loss is `CE - penalty_weight * mean over voxels and classes of -s_k log s_k`, with `s = softmax(input)`:
    confident predictions, whose entropy is low, cost more.

    Pereyra et al., "Regularizing Neural Networks by Penalizing Confident Output Distributions", ICLR workshop 2017,
    https://arxiv.org/abs/1701.06548

    Shape:
        - input: logits, `(B, N, H, W)` or `(B, N, H, W, D)`; float16 and bfloat16 are computed in float32.
        - target: class index, `(B, 1, *S)` or `(B, *S)`, of any type that holds whole numbers; or probabilities,
          `(B, N, *S)`.
        - output: a scalar.

    Args:
        penalty_weight: lambda. The mean over voxels is over classes too, as in the code of the NACL paper's authors.
        ignore_index: label of voxels that do not count, or None. For class indices only. The loss is 0 where every
            voxel is ignored.

    Raises:
        TypeError: the input is not floating point, or the target not a tensor of numbers.
        ValueError: a negative weight, shapes that do not match, values that are not logits, labels or probabilities.

    Example:
        >>> loss = EntropyPenaltyLoss(penalty_weight=0.2)
        >>> logits = torch.randn(2, 4, 64, 64, requires_grad=True)
        >>> labels = torch.randint(4, (2, 1, 64, 64))
        >>> loss(logits, labels).backward()
    """

    def __init__(self, penalty_weight: float = 0.1, ignore_index: int | None = None) -> None:
        super().__init__()
        check_weight("penalty_weight", penalty_weight)
        self.penalty_weight = penalty_weight
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return entropy_penalty_loss(input, target, penalty_weight=self.penalty_weight, ignore_index=self.ignore_index)
