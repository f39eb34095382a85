"""Proper scoring rules of class probabilities: negative log-likelihood and Brier score.

`calib_components.metrics.voxels` describes which voxels are used and how they are checked.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from calib_components.arguments import check_flag, check_ignore_index
from calib_components.metrics.case_metric import CaseMetric
from calib_components.metrics.voxels import check_tensors, read_voxels

__all__ = ["BrierMetric", "NLLMetric", "brier_score", "negative_log_likelihood"]


def negative_log_likelihood(
    y_pred: torch.Tensor, y: torch.Tensor, foreground_only: bool = True, ignore_index: int | None = None
) -> torch.Tensor:
    """Negative log-likelihood (NLL) of each case: mean over voxels of `-log s_y`, in nats.

    `s_y` is the probability of the true class. Probabilities that underflowed to 0 are replaced by the smallest normal
    float32 (87.3 nats), so that a single voxel does not make the mean infinite.

    Shape:
        - y_pred: `(B, N, *S)`, with N >= 2 classes and any number of spatial dimensions.
        - y: `(B, 1, *S)` class index, or `(B, N, *S)` one-hot.
        - output: `(B,)`.

    Args:
        y_pred: Probabilities of any floating-point type.
        y: Ground truth, of any type that holds whole numbers.
        foreground_only: Whether to use only voxels whose ground truth is not class 0.
        ignore_index: Ground-truth value of voxels to leave out.

    Returns:
        Float64; NaN for a case without voxels.

    Raises:
        TypeError: An input is not a tensor, or `y_pred` is not of a floating-point type.
        ValueError: Shapes do not match or hold no voxel, `y_pred` does not hold probabilities, `y` holds invalid
            labels, or an option has an unsuitable value.

    Examples:
        >>> import torch
        >>> from calib_components.metrics import negative_log_likelihood
        >>> y_pred = torch.tensor([[[0.1, 0.3, 0.4], [0.9, 0.7, 0.6]]])  # one case, two classes, three voxels
        >>> y = torch.tensor([[[1, 1, 0]]])
        >>> negative_log_likelihood(y_pred, y)  # -(log 0.9 + log 0.7) / 2
        tensor([0.2310], dtype=torch.float64)
    """
    smallest = torch.finfo(torch.float32).tiny

    def score(p: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return -p.gather(0, label[None]).clamp_min(smallest).log()

    return _mean_over_voxels(score, y_pred, y, foreground_only, ignore_index)


def brier_score(
    y_pred: torch.Tensor, y: torch.Tensor, foreground_only: bool = True, ignore_index: int | None = None
) -> torch.Tensor:
    """Brier score of each case: mean over voxels of `sum_k (s_k - q_k)^2`, from 0 (best) to 2.

    `s` are the probabilities and `q` is the one-hot ground truth.

    Shape:
        - y_pred: `(B, N, *S)`, with N >= 2 classes and any number of spatial dimensions.
        - y: `(B, 1, *S)` class index, or `(B, N, *S)` one-hot.
        - output: `(B,)`.

    Args:
        y_pred: Probabilities of any floating-point type.
        y: Ground truth, of any type that holds whole numbers.
        foreground_only: Whether to use only voxels whose ground truth is not class 0.
        ignore_index: Ground-truth value of voxels to leave out.

    Returns:
        Float64; NaN for a case without voxels.

    Raises:
        TypeError: An input is not a tensor, or `y_pred` is not of a floating-point type.
        ValueError: Shapes do not match or hold no voxel, `y_pred` does not hold probabilities, `y` holds invalid
            labels, or an option has an unsuitable value.

    Source: Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78, 1950.

    Examples:
        >>> import torch
        >>> from calib_components.metrics import brier_score
        >>> y_pred = torch.tensor([[[0.1, 0.3, 0.4], [0.9, 0.7, 0.6]]])  # one case, two classes, three voxels
        >>> y = torch.tensor([[[1, 1, 0]]])
        >>> brier_score(y_pred, y)  # (2 * 0.1^2 + 2 * 0.3^2) / 2
        tensor([0.1000], dtype=torch.float64)
    """

    def score(p: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return p.square().sum(0) - 2 * p.gather(0, label[None])[0] + 1

    return _mean_over_voxels(score, y_pred, y, foreground_only, ignore_index)


def _mean_over_voxels(
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    y_pred: torch.Tensor,
    y: torch.Tensor,
    foreground_only: bool,
    ignore_index: int | None,
) -> torch.Tensor:
    y_pred, y = check_tensors(y_pred, y)
    total = torch.zeros(len(y_pred), dtype=torch.float64, device=y_pred.device)
    count = torch.zeros_like(total)
    for case, p, label in read_voxels(y_pred, y, foreground_only, ignore_index):
        total[case] += score(p, label).sum()
        count[case] += len(label)
    return total / count


class _VoxelMeanMetric(CaseMetric):
    def __init__(self, foreground_only: bool = True, ignore_index: int | None = None) -> None:
        super().__init__()
        check_flag("foreground_only", foreground_only)
        check_ignore_index(ignore_index)
        self.foreground_only = foreground_only
        self.ignore_index = ignore_index

    def case_values(self) -> torch.Tensor:
        return self.gathered()


class NLLMetric(_VoxelMeanMetric):
    """Negative log-likelihood of each case, see `negative_log_likelihood`.

    `aggregate()` is the mean over cases and `aggregate("none")` the value of each case. A case without voxels is NaN
    and left out of the mean.

    Shape:
        - y_pred: `(B, N, *S)`, with N >= 2 classes, or a list of `(N, *S)`.
        - y: `(B, 1, *S)` class index or `(B, N, *S)` one-hot, or a list of these without `B`.

    Args:
        foreground_only: Whether to use only voxels whose ground truth is not class 0.
        ignore_index: Ground-truth value of voxels to leave out.

    Raises:
        TypeError: An option is not one of these.
        ValueError: An option has an unsuitable value. Calls raise the errors of `negative_log_likelihood`.

    Examples:
        >>> import torch
        >>> from calib_components.metrics import NLLMetric
        >>> metric = NLLMetric()
        >>> _ = metric(torch.tensor([[[0.1, 0.3], [0.9, 0.7]]]), torch.tensor([[[1, 1]]]))
        >>> metric.aggregate()  # -(log 0.9 + log 0.7) / 2
        tensor(0.2310, dtype=torch.float64)
    """

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return negative_log_likelihood(y_pred, y, self.foreground_only, self.ignore_index)


class BrierMetric(_VoxelMeanMetric):
    """Brier score of each case, see `brier_score`.

    `aggregate()` is the mean over cases and `aggregate("none")` the value of each case. A case without voxels is NaN
    and left out of the mean.

    Shape:
        - y_pred: `(B, N, *S)`, with N >= 2 classes, or a list of `(N, *S)`.
        - y: `(B, 1, *S)` class index or `(B, N, *S)` one-hot, or a list of these without `B`.

    Args:
        foreground_only: Whether to use only voxels whose ground truth is not class 0.
        ignore_index: Ground-truth value of voxels to leave out.

    Raises:
        TypeError: An option is not one of these.
        ValueError: An option has an unsuitable value. Calls raise the errors of `brier_score`.

    Examples:
        >>> import torch
        >>> from calib_components.metrics import BrierMetric
        >>> metric = BrierMetric()
        >>> _ = metric(torch.tensor([[[0.1, 0.3], [0.9, 0.7]]]), torch.tensor([[[1, 1]]]))
        >>> metric.aggregate()  # (2 * 0.1^2 + 2 * 0.3^2) / 2
        tensor(0.1000, dtype=torch.float64)
    """

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return brier_score(y_pred, y, self.foreground_only, self.ignore_index)
