"""Proper scoring rules of class probabilities: negative log-likelihood and Brier score.

`calib_components.metrics.regions` describes which voxels count, and `calib_components.metrics.voxels` how they are
checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from calib_components.arguments import check_flag, check_ignore_index
from calib_components.metrics.case_metric import CaseMetric
from calib_components.metrics.one_pass import measure_regions
from calib_components.metrics.regions import Region, choose_region

__all__ = ["BrierMetric", "NLLMetric", "brier_score", "negative_log_likelihood"]


def negative_log_likelihood(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    foreground_only: bool | None = None,
    ignore_index: int | None = None,
    region: Any = None,
    sigmoid: bool = False,
) -> torch.Tensor:
    """Negative log-likelihood (NLL) of each case: mean over voxels (and channels of sigmoids) of `-log s_y`, in nats.

    `s_y` is the probability of the true class. Those below the smallest normal float32 (87.3 nats), in float16 below
    half its smallest step (17.3 nats), are replaced by it, so that a single voxel does not make the mean infinite.
    Likewise, a probability of 1 of a sigmoid in float16 or bfloat16 counts as half a step less (8.3 or 6.2 nats where
    the truth is 0).

    Shape:
        - y_pred: `(B, N, *S)`, with N classes or channels and any number of spatial dimensions.
        - y: `(B, 1, *S)` class index, or `(B, N, *S)` one-hot; for sigmoids 0 or 1, `(B, N, *S)`.
        - output: `(B,)`.

    Args:
        y_pred: Probabilities of any floating-point type.
        y: Ground truth, of any type that holds whole numbers.
        foreground_only: True is the region "foreground", False is "all".
        ignore_index: Ground-truth value of voxels to leave out.
        region: Which voxels count, see `calib_components.metrics.regions`: a `Region`, its name, or class indices; None
            is "foreground", voxels whose ground truth is not class 0.
        sigmoid: Whether each channel is a binary problem of its own, with a probability from a sigmoid and ground truth
            0 or 1. One channel always is.

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
    return _mean_over_voxels("nll", y_pred, y, choose_region(region, foreground_only), ignore_index, sigmoid)


def brier_score(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    foreground_only: bool | None = None,
    ignore_index: int | None = None,
    region: Any = None,
    sigmoid: bool = False,
) -> torch.Tensor:
    """Brier score of each case: mean over voxels of `sum_k (s_k - q_k)^2`, from 0 (best) to 2.

    `s` are the probabilities and `q` is the one-hot ground truth. A channel of sigmoids counts as two classes.

    Shape:
        - y_pred: `(B, N, *S)`, with N classes or channels and any number of spatial dimensions.
        - y: `(B, 1, *S)` class index, or `(B, N, *S)` one-hot; for sigmoids 0 or 1, `(B, N, *S)`.
        - output: `(B,)`.

    Args:
        y_pred: Probabilities of any floating-point type.
        y: Ground truth, of any type that holds whole numbers.
        foreground_only: True is the region "foreground", False is "all".
        ignore_index: Ground-truth value of voxels to leave out.
        region: Which voxels count, see `calib_components.metrics.regions`: a `Region`, its name, or class indices; None
            is "foreground", voxels whose ground truth is not class 0.
        sigmoid: Whether each channel is a binary problem of its own, with a probability from a sigmoid and ground truth
            0 or 1. One channel always is.

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

    return _mean_over_voxels("brier", y_pred, y, choose_region(region, foreground_only), ignore_index, sigmoid)


def _mean_over_voxels(
    score: str,
    y_pred: torch.Tensor,
    y: torch.Tensor,
    region: Region,
    ignore_index: int | None,
    sigmoid: bool,
) -> torch.Tensor:
    return measure_regions(y_pred, y, [region], [score], ignore_index=ignore_index, sigmoid=sigmoid)[0][score][0]


class _VoxelMeanMetric(CaseMetric):
    score: str

    def __init__(
        self,
        foreground_only: bool | None = None,
        ignore_index: int | None = None,
        region: Any = None,
        sigmoid: bool = False,
    ) -> None:
        super().__init__()
        check_ignore_index(ignore_index)
        check_flag("sigmoid", sigmoid)
        self.region = choose_region(region, foreground_only)
        self.ignore_index = ignore_index
        self.sigmoid = sigmoid

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return _mean_over_voxels(self.score, y_pred, y, self.region, self.ignore_index, self.sigmoid)

    def stored(self, results: Mapping[str, list[torch.Tensor]]) -> list[torch.Tensor]:
        """Select what this metric stores from the results of its region."""
        return results[self.score]

    @property
    def num_stored(self) -> int:
        """How many tensors these are."""
        return 1

    def case_values(self) -> torch.Tensor:
        return self.gathered()


class NLLMetric(_VoxelMeanMetric):
    """Negative log-likelihood of each case, see `negative_log_likelihood`.

    `aggregate()` is the mean over cases and `aggregate("none")` the value of each case. A case without voxels is NaN
    and left out of the mean.

    Shape:
        - y_pred: `(B, N, *S)`, with N classes or channels, or a list of `(N, *S)`.
        - y: `(B, 1, *S)` class index or `(B, N, *S)` one-hot, for sigmoids 0 or 1, `(B, N, *S)`; or a list of these
          without `B`.

    Args:
        foreground_only: True is the region "foreground", False is "all".
        ignore_index: Ground-truth value of voxels to leave out.
        region: Which voxels count, see `calib_components.metrics.regions`: a `Region`, its name, or class indices; None
            is "foreground", voxels whose ground truth is not class 0.
        sigmoid: Whether each channel is a binary problem of its own, with a probability from a sigmoid and ground truth
            0 or 1. One channel always is.

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

    score = "nll"


class BrierMetric(_VoxelMeanMetric):
    """Brier score of each case, see `brier_score`.

    `aggregate()` is the mean over cases and `aggregate("none")` the value of each case. A case without voxels is NaN
    and left out of the mean.

    Shape:
        - y_pred: `(B, N, *S)`, with N classes or channels, or a list of `(N, *S)`.
        - y: `(B, 1, *S)` class index or `(B, N, *S)` one-hot, for sigmoids 0 or 1, `(B, N, *S)`; or a list of these
          without `B`.

    Args:
        foreground_only: True is the region "foreground", False is "all".
        ignore_index: Ground-truth value of voxels to leave out.
        region: Which voxels count, see `calib_components.metrics.regions`: a `Region`, its name, or class indices; None
            is "foreground", voxels whose ground truth is not class 0.
        sigmoid: Whether each channel is a binary problem of its own, with a probability from a sigmoid and ground truth
            0 or 1. One channel always is.

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

    score = "brier"
