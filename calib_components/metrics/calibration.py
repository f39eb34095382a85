"""Calibration errors of class probabilities: ECE, CECE and adaptive ECE.

`calib_components.metrics.regions` describes which voxels count, and `calib_components.metrics.voxels` how they are
checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from calib_components.arguments import check_flag, check_ignore_index
from calib_components.metrics.bins import CalibrationBins
from calib_components.metrics.case_metric import CaseMetric
from calib_components.metrics.one_pass import check_num_bins, measure_regions
from calib_components.metrics.regions import choose_region
from calib_components.metrics.voxels import check_tensors, read_voxels

__all__ = ["CECEMetric", "ECEMetric", "adaptive_calibration_error"]


def adaptive_calibration_error(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    num_bins: int = 15,
    foreground_only: bool | None = None,
    ignore_index: int | None = None,
    region: Any = None,
    sigmoid: bool = False,
) -> torch.Tensor:
    """Adaptive ECE of each case: like top-label ECE, but with bins that hold equally many voxels.

    Bin edges are interpolated between the sorted confidences, and bins are `(lo, hi]`, as in the code published with
    Murugesan et al., MICCAI 2023. So the least confident voxel is in no bin; if several are equally confident, one of
    them is left out on average. Memory grows with the number of voxels used, because they are sorted.

    Shape:
        - y_pred: `(B, N, *S)`, with N classes or channels and any number of spatial dimensions.
        - y: `(B, 1, *S)` class index, or `(B, N, *S)` one-hot; for sigmoids 0 or 1, `(B, N, *S)`.
        - output: `(B,)`.

    Args:
        y_pred: Probabilities of any floating-point type.
        y: Ground truth, of any type that holds whole numbers.
        num_bins: Number of bins.
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

    Source: Mukhoti et al., "Calibrating Deep Neural Networks using Focal Loss", NeurIPS 2020 (AdaECE).

    Examples:
        >>> import torch
        >>> from calib_components.metrics import adaptive_calibration_error
        >>> p = torch.tensor([0.4, 0.5, 0.6, 0.7, 0.8, 0.9])  # of class 1
        >>> y_pred, y = torch.stack([1 - p, p]).unsqueeze(0), torch.tensor([[[0, 0, 1, 1, 1, 1]]])
        >>> adaptive_calibration_error(y_pred, y, num_bins=2)
        tensor([0.1500], dtype=torch.float64)
    """
    y_pred, y = check_tensors(y_pred, y, sigmoid)
    check_num_bins(num_bins)
    confidences: list[list[torch.Tensor]] = [[] for _ in y_pred]
    correct: list[list[torch.Tensor]] = [[] for _ in y_pred]
    for voxels in read_voxels(y_pred, y, choose_region(region, foreground_only), ignore_index, sigmoid):
        confidence, predicted = voxels.top
        confidences[voxels.case].append(confidence)
        correct[voxels.case].append(predicted == voxels.label)
    errors = torch.full((len(y_pred),), torch.nan, dtype=torch.float64, device=y_pred.device)
    for case in range(len(y_pred)):
        if confidences[case]:
            errors[case] = _equal_count_error(torch.cat(confidences[case]), torch.cat(correct[case]), num_bins)
    return errors


def _equal_count_error(confidence: torch.Tensor, correct: torch.Tensor, num_bins: int) -> torch.Tensor:
    confidence, order = confidence.sort()
    excess = confidence - correct[order].double()
    position = torch.arange(num_bins, dtype=torch.float64, device=confidence.device) * len(confidence) / num_bins
    below = position.long()
    above = (below + 1).clamp_max(len(confidence) - 1)
    edges = torch.lerp(confidence[below], confidence[above], position - below)
    index = torch.bucketize(confidence, edges[1:])
    sums = torch.zeros_like(edges).index_add_(0, index, excess)
    sums[0] -= excess[confidence == edges[0]].mean()
    return sums.abs().sum() / len(confidence)


class _BinnedMetric(CaseMetric):
    kind: str  # "top_label" or "classwise"

    def __init__(
        self,
        num_bins: int = 15,
        foreground_only: bool | None = None,
        ignore_index: int | None = None,
        region: Any = None,
        sigmoid: bool = False,
    ) -> None:
        super().__init__()
        check_num_bins(num_bins)
        check_ignore_index(ignore_index)
        check_flag("sigmoid", sigmoid)
        self.num_bins = num_bins
        self.region = choose_region(region, foreground_only)
        self.ignore_index = ignore_index
        self.sigmoid = sigmoid

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        measures = [self.kind, "if_true"]
        results = measure_regions(y_pred, y, [self.region], measures, self.num_bins, self.ignore_index, self.sigmoid)
        return self.stored(results[0])

    def stored(self, results: Mapping[str, list[torch.Tensor]]) -> list[torch.Tensor]:
        """Select what this metric stores from the results of its region."""
        return [*results[self.kind], *results.get(f"{self.kind}_if_true", [])]

    @property
    def num_stored(self) -> int:
        """How many tensors these are."""
        return 6 if self.region.has_closed_form else 3

    @property
    def case_bins(self) -> CalibrationBins:
        """Bins of each case."""
        return CalibrationBins(*self.gathered()[:3])

    @property
    def bins(self) -> CalibrationBins:
        """Bins of all voxels of all cases together, `B = 1`."""
        return self.case_bins.pooled()

    @property
    def case_bins_if_true(self) -> CalibrationBins | None:
        """Bins of each case that are expected if the probabilities are true; None for "band", which has no such form.

        Counts are float64.
        """
        if self.region.has_closed_form:
            return CalibrationBins(*self.gathered()[3:6])
        if self.region.by_prediction:
            bins = self.case_bins
            return CalibrationBins(bins.count.double(), bins.confidence_sum, bins.confidence_sum)
        return None

    @property
    def bins_if_true(self) -> CalibrationBins | None:
        """The same of all voxels of all cases together, `B = 1`."""
        bins = self.case_bins_if_true
        return None if bins is None else bins.pooled()

    def aggregate_if_true(self, reduction: str = "mean") -> torch.Tensor:
        """Reduce the values that the error would have with many voxels if the probabilities were true.

        They are 0 for a region chosen by the prediction, and NaN for "band", where they depend on more than the
        probabilities. With few voxels, chance adds to them.

        Args:
            reduction: As in `aggregate`.

        Raises:
            ValueError: No case has been added, or the reduction is unknown.
        """
        bins = self.case_bins_if_true
        if bins is None:
            bins = self.case_bins
            bins = CalibrationBins(bins.count, bins.confidence_sum * torch.nan, bins.num_correct)
        return self.reduce_bins(bins, reduction)

    def reduce_bins(self, bins: CalibrationBins, reduction: str) -> torch.Tensor:
        """Reduce the errors of the bins of cases."""
        return self.reduce(bins.expected_error(), reduction)

    def case_values(self) -> torch.Tensor:
        return self.case_bins.expected_error()


class ECEMetric(_BinnedMetric):
    """Expected calibration error (ECE) of the predicted class, the top label.

    `sum_bins count / total * |mean confidence - accuracy|`, where the confidence of a voxel is its highest probability.

    `aggregate()` is the mean over cases and `aggregate("none")` the value of each case. A case without voxels is NaN
    and left out of the mean. `bins.expected_error()` is the error of all voxels pooled.

    Shape:
        - y_pred: `(B, N, *S)`, with N classes or channels, or a list of `(N, *S)`.
        - y: `(B, 1, *S)` class index or `(B, N, *S)` one-hot, for sigmoids 0 or 1, `(B, N, *S)`; or a list of these
          without `B`.

    Args:
        num_bins: Number of bins of equal width on (0, 1].
        foreground_only: True is the region "foreground", False is "all".
        ignore_index: Ground-truth value of voxels to leave out.
        region: Which voxels count, see `calib_components.metrics.regions`: a `Region`, its name, or class indices; None
            is "foreground", voxels whose ground truth is not class 0.
        sigmoid: Whether each channel is a binary problem of its own, with a probability from a sigmoid and ground truth
            0 or 1. One channel always is.

    Raises:
        TypeError: An option is not one of these.
        ValueError: An option has an unsuitable value. Calls raise the errors of `calibration_bins`.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017.

    Examples:
        >>> import torch
        >>> from calib_components.metrics import ECEMetric
        >>> y_pred = torch.tensor([[[0.1, 0.3, 0.4], [0.9, 0.7, 0.6]]])  # one case, two classes, three voxels
        >>> y = torch.tensor([[[1, 1, 0]]])
        >>> metric = ECEMetric()
        >>> _ = metric(y_pred, y)
        >>> metric.aggregate()  # of the two foreground voxels: (|0.9 - 1| + |0.7 - 1|) / 2
        tensor(0.2000, dtype=torch.float64)
    """

    kind = "top_label"


class CECEMetric(_BinnedMetric):
    """Classwise expected calibration error (CECE): the mean over all N classes, background included, of their ECE.

    The ECE of class `k` bins the probability of `k` at every voxel, which is correct where the ground truth is `k`.

    `aggregate()` is the mean over cases, `aggregate("none")` the value of each case, and `aggregate("mean_batch")` the
    mean over cases of each class, `(N,)`. A case without voxels is NaN and left out of the means.
    `bins.expected_error()` is the error of all voxels pooled.

    Shape:
        - y_pred: `(B, N, *S)`, with N classes or channels, or a list of `(N, *S)`.
        - y: `(B, 1, *S)` class index or `(B, N, *S)` one-hot, for sigmoids 0 or 1, `(B, N, *S)`; or a list of these
          without `B`.

    Args:
        num_bins: Number of bins of equal width on (0, 1].
        foreground_only: True is the region "foreground", False is "all".
        ignore_index: Ground-truth value of voxels to leave out.
        region: Which voxels count, see `calib_components.metrics.regions`: a `Region`, its name, or class indices; None
            is "foreground", voxels whose ground truth is not class 0.
        sigmoid: Whether each channel is a binary problem of its own, with a probability from a sigmoid and ground truth
            0 or 1. One channel always is.

    Raises:
        TypeError: An option is not one of these.
        ValueError: An option has an unsuitable value. Calls raise the errors of `calibration_bins`.

    Source: Kull et al., "Beyond temperature scaling: Obtaining well-calibrated multi-class probabilities with Dirichlet
    calibration", NeurIPS 2019.

    Examples:
        >>> import torch
        >>> from calib_components.metrics import CECEMetric
        >>> y_pred = torch.tensor([[[0.2, 0.4], [0.7, 0.6], [0.1, 0.0]]])  # one case, three classes, two voxels
        >>> y = torch.tensor([[[1, 1]]])
        >>> metric = CECEMetric()
        >>> _ = metric(y_pred, y)
        >>> metric.aggregate("mean_batch")
        tensor([0.3000, 0.3500, 0.0500], dtype=torch.float64)
        >>> metric.aggregate()
        tensor(0.2333, dtype=torch.float64)
    """

    kind = "classwise"

    def aggregate(self, reduction: str = "mean") -> torch.Tensor:
        """Reduce the values as `CaseMetric.aggregate` does; "mean_batch" returns the mean of each class, `(N,)`."""
        return self.reduce_bins(self.case_bins, reduction)

    def reduce_bins(self, bins: CalibrationBins, reduction: str) -> torch.Tensor:
        if reduction == "mean_batch":
            errors = [of_class.expected_error() for of_class in bins.per_class()]
            return torch.stack(errors).nanmean(1)
        return super().reduce_bins(bins, reduction)
