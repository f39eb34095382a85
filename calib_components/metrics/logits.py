"""How large logits are (Fig. 2 of the paper)."""

from __future__ import annotations

import torch

from calib_components.metrics.case_metric import CaseMetric, plain_tensor

__all__ = ["LogitMagnitudeMetric", "logit_magnitude_sums"]


def logit_magnitude_sums(
    logits: torch.Tensor, y: torch.Tensor, ignore_index: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums `|l|` of every channel over the voxels of each ground truth class.

    Shape:
        logits: `(B, N, *S)`.
        y: class index `(B, 1, *S)`.

    Args:
        logits: network output before softmax.
        y: ground truth; of any type that holds whole numbers.
        ignore_index: ground truth value of voxels that are left out.

    Returns:
        `(B, N, N)` float64 sums, ground truth class first, and the `(B, N)` int64 numbers of voxels.

    Raises:
        ValueError: if shapes do not match or `y` holds an invalid label.
    """
    logits, y = plain_tensor(logits, "logits"), plain_tensor(y, "y")
    batch, num_classes, *spatial = logits.shape
    if y.shape != (batch, 1, *spatial):
        raise ValueError(
            f"y must have shape {(batch, 1, *spatial)} (class index) to match logits of shape {tuple(logits.shape)}, "
            f"got {tuple(y.shape)}."
        )
    sums = logits.new_zeros((batch, num_classes, num_classes), dtype=torch.float64)
    count = logits.new_zeros((batch, num_classes), dtype=torch.int64)
    for case in range(batch):
        for k in range(num_classes):
            if k != ignore_index:
                magnitudes = logits[case][:, y[case, 0] == k].abs()
                sums[case, k] = magnitudes.sum(1, dtype=torch.float64)
                count[case, k] = magnitudes.shape[1]
    expected = y.numel() if ignore_index is None else int((y != ignore_index).sum())
    if int(count.sum()) != expected:
        raise ValueError(
            f"y must hold class indices 0 to {num_classes - 1}, but {expected - int(count.sum())} of its voxels do not."
        )
    return sums, count


class LogitMagnitudeMetric(CaseMetric):
    """Mean magnitude `|l|` of the logits, for each ground truth class and channel.

    `y_pred`: logits `(B, N, *S)`; `y`: class index `(B, 1, *S)`. `magnitudes` is the table over all voxels of all
    cases; `aggregate("none")` the table of each case, `(cases, N, N)`, and `aggregate()` its mean over all entries and
    cases. A class without any voxel is NaN.

    Args:
        ignore_index: ground truth value of voxels that are left out.

    Source: Fig. 2 of Murugesan et al., "Trust Your Neighbours: Penalty-Based Constraints for Model Calibration",
    MICCAI 2023.
    """

    def __init__(self, ignore_index: int | None = None) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        return list(logit_magnitude_sums(y_pred, y, self.ignore_index))

    def case_values(self) -> torch.Tensor:
        sums, count = self.gathered()
        return sums / count.unsqueeze(-1)

    @property
    def magnitudes(self) -> torch.Tensor:
        """Float64 `(N, N)`: mean `|l|` over all voxels of all cases, ground truth class first."""
        sums, count = self.gathered()
        return sums.sum(0) / count.sum(0).unsqueeze(-1)
