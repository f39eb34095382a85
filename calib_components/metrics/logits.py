"""Magnitude of logits."""

from __future__ import annotations

import torch

from calib_components.arguments import check_ignore_index
from calib_components.metrics.case_metric import CaseMetric, plain_tensor
from calib_components.metrics.voxels import decode_labels

__all__ = ["LogitMagnitudeMetric", "logit_magnitude_sums"]

CHUNK = 2**22  # voxels whose logits are copied at a time


def logit_magnitude_sums(
    logits: torch.Tensor, y: torch.Tensor, ignore_index: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum `|l|` of every channel over the voxels of each ground-truth class.

    Shape:
        - logits: `(B, N, *S)`.
        - y: class index, `(B, 1, *S)`.
        - output: `(B, N, N)` and `(B, N)`.

    Args:
        logits: Output of a network before softmax.
        y: Ground truth, of any type that holds whole numbers.
        ignore_index: Ground-truth value of voxels to leave out.

    Returns:
        The float64 sums by ground-truth class and channel, and the int64 numbers of voxels of each class.

    Raises:
        TypeError: An input is not a tensor, or `logits` is not of a floating-point type.
        ValueError: Shapes do not match, some logits are NaN or infinite, `y` holds invalid labels, or `ignore_index` is
            not a whole number.

    Examples:
        >>> import torch
        >>> from calib_components.metrics.logits import logit_magnitude_sums
        >>> logits = torch.tensor([[[1.0, -2.0, 3.0], [0.0, 4.0, -6.0]]])  # one case, two classes, three voxels
        >>> sums, count = logit_magnitude_sums(logits, torch.tensor([[[0, 1, 1]]]))
        >>> sums.tolist(), count.tolist()
        ([[[1.0, 0.0], [5.0, 10.0]]], [[1, 2]])
    """
    logits, y = plain_tensor(logits, "logits"), plain_tensor(y, "y")
    check_ignore_index(ignore_index)
    if not logits.is_floating_point():
        raise TypeError(f"logits: expected a floating-point type, got {logits.dtype}")
    if y.is_complex():
        raise TypeError(f"y: expected class indices, got {y.dtype}")
    if logits.ndim < 3 or logits.numel() == 0:
        raise ValueError(f"logits: expected shape (B, N, *S) with at least one voxel, got {tuple(logits.shape)}")
    batch, num_classes, *spatial = logits.shape
    if y.shape != (batch, 1, *spatial):
        raise ValueError(
            f"y: expected shape {(batch, 1, *spatial)} (class index) to match logits of shape {tuple(logits.shape)}, "
            f"got {tuple(y.shape)}"
        )
    sums = logits.new_zeros((batch, num_classes, num_classes), dtype=torch.float64)
    count = logits.new_zeros((batch, num_classes), dtype=torch.int64)
    expected = y.numel()
    for case in range(batch):
        chunks = (values.flatten(1).split(CHUNK, 1) for values in (logits[case], y[case]))
        for of_voxels, labels in zip(*chunks, strict=True):
            label = decode_labels(labels)
            if ignore_index is not None:
                expected -= int((label == ignore_index).sum())
            for k in range(num_classes):
                if k != ignore_index:
                    magnitudes = of_voxels.index_select(1, (label == k).nonzero().squeeze(1)).abs()
                    sums[case, k] += magnitudes.sum(1, dtype=torch.float64)
                    count[case, k] += magnitudes.shape[1]
    invalid = expected - int(count.sum())
    if invalid:
        raise ValueError(
            f"y: expected class indices from 0 to {num_classes - 1}, got other values in {invalid} of {y.numel()} "
            "voxels"
        )
    if not sums.isfinite().all():
        raise ValueError("logits: expected finite values, got NaN or infinite ones")
    return sums, count


class LogitMagnitudeMetric(CaseMetric):
    """Mean magnitude `|l|` of the logits, by ground-truth class and channel.

    `magnitudes` is the table over all voxels of all cases. `aggregate("none")` is the table of each case,
    `(cases, N, N)`, `aggregate("mean_batch")` its mean over cases, and `aggregate()` the mean over its entries and
    cases. The row of a class without voxels is NaN.

    Shape:
        - y_pred: logits, `(B, N, *S)` or a list of `(N, *S)`.
        - y: class index, `(B, 1, *S)` or a list of `(1, *S)`.

    Args:
        ignore_index: Ground-truth value of voxels to leave out.

    Raises:
        TypeError: An option is not one of these.
        ValueError: `ignore_index` is not a whole number. Calls raise the errors of `logit_magnitude_sums`.

    Source: Murugesan et al., "Trust Your Neighbours: Penalty-Based Constraints for Model Calibration", MICCAI 2023,
    Fig. 2.

    Examples:
        >>> import torch
        >>> from calib_components.metrics import LogitMagnitudeMetric
        >>> metric = LogitMagnitudeMetric()
        >>> _ = metric(torch.tensor([[[1.0, -2.0, 3.0], [0.0, 4.0, -6.0]]]), torch.tensor([[[0, 1, 1]]]))
        >>> metric.magnitudes.tolist()
        [[1.0, 0.0], [2.5, 5.0]]
    """

    def __init__(self, ignore_index: int | None = None) -> None:
        super().__init__()
        check_ignore_index(ignore_index)
        self.ignore_index = ignore_index

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        return list(logit_magnitude_sums(y_pred, y, self.ignore_index))

    def case_values(self) -> torch.Tensor:
        sums, count = self.gathered()
        return sums / count.unsqueeze(-1)

    def get_buffer(self) -> torch.Tensor:
        """Return the table of each case row by row, `(cases, N * N)`: handlers write one column per entry."""
        return self.case_values().flatten(1)

    @property
    def magnitudes(self) -> torch.Tensor:
        """Mean `|l|` over all voxels of all cases, by ground-truth class and channel: float64 `(N, N)`."""
        sums, count = self.gathered()
        return sums.sum(0) / count.sum(0).unsqueeze(-1)
