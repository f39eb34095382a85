"""Entropy penalty."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from calib_components.errors import check_number
from calib_components.losses.base import CalibrationLoss


class EntropyPenaltyLoss(CalibrationLoss):
    """Entropy penalty (ECP, explicit confidence penalty): cross-entropy minus the entropy of the
    prediction.

    ```python
    probabilities = input.softmax(1)
    entropy = -probabilities * probabilities.log()
    loss = F.cross_entropy(input, target) - penalty_weight * entropy.mean()
    ```

    Confident predictions have a low entropy and are therefore penalised.

    Source: Pereyra et al., "Regularizing Neural Networks by Penalizing Confident Output
    Distributions", ICLR workshop 2017, <https://arxiv.org/abs/1701.06548>

    Departure from the paper: its entropy is the sum over the N classes. Here it is the mean over
    classes, as in the code of the NACL paper's authors, so a `penalty_weight` of 0.1 corresponds to
    0.1 / N in the paper.

    Shapes and errors are those of `CalibrationLoss`.

    Args:
        penalty_weight: Weight of the entropy (the paper's beta, lambda in the NACL paper). Default:
            `0.1`.
        ignore_index: Label of voxels that do not count, see `CalibrationLoss`. Default: `None`.
    """

    def __init__(self, penalty_weight: float = 0.1, ignore_index: int | None = None) -> None:
        super().__init__(ignore_index)
        check_number("penalty_weight", penalty_weight, 0)
        self.penalty_weight = penalty_weight

    def voxel_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_probabilities = F.log_softmax(logits, dim=1)
        entropy = -(log_probabilities.exp() * log_probabilities).sum(1)
        return (
            -(labels * log_probabilities).sum(1) - self.penalty_weight / logits.shape[1] * entropy
        )
