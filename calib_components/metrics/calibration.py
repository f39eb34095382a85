"""Calibration errors of class probabilities: ECE, CECE and adaptive ECE.

`calib_components.metrics.regions` describes which voxels count, and `calib_components.metrics.voxels` how they are
checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch

from calib_components.arguments import check_flag, check_ignore_index
from calib_components.metrics.bins import CalibrationBins
from calib_components.metrics.case_metric import CaseMetric
from calib_components.metrics.one_pass import check_num_bins, measure_regions
from calib_components.metrics.regions import choose_region
from calib_components.metrics.sums import bincount
from calib_components.metrics.voxels import check_tensors, read_voxels

__all__ = ["CECEMetric", "ECEMetric", "adaptive_calibration_error"]

Reader: TypeAlias = Callable[[], Iterator[tuple[torch.Tensor, torch.Tensor]]]  # of confidences and residuals


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
    them is left out on average. Edges are exact, found without sorting: the voxels are read about six times, in memory
    that does not grow with their number.

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
    region = choose_region(region, foreground_only)
    numbers = [0] * len(y_pred)
    for voxels in read_voxels(y_pred, y, region, ignore_index, sigmoid):  # checks all cases before any is measured
        numbers[voxels.case] += len(voxels.label)
    errors = torch.full((len(y_pred),), torch.nan, dtype=torch.float64, device=y_pred.device)
    for case, number in enumerate(numbers):
        if number > 0:
            part = slice(case, case + 1)
            read = partial(_read_residuals, y_pred[part], y[part], region, ignore_index, sigmoid)
            position = torch.arange(num_bins, dtype=torch.float64, device=y_pred.device) * number / num_bins
            errors[case] = _equal_count_error(read, position, number)
    return errors


def _read_residuals(*voxels_of: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the confidences of voxels and, where right, these minus 1, chunk by chunk."""
    for voxels in read_voxels(*voxels_of):
        confidence, predicted = voxels.top
        yield confidence, confidence - (predicted == voxels.label).double()


def _equal_count_error(read: Reader, position: torch.Tensor, number: int) -> torch.Tensor:
    """Adaptive ECE of a number of voxels, with lower edges of bins at positions among the sorted confidences."""
    below = position.long()
    above = (below + 1).clamp_max(number - 1)
    low, high = _order_statistics(read, torch.cat([below, above])).view(2, -1)
    edges = torch.lerp(low, high, position - below)
    sums = torch.zeros_like(edges)
    lowest = edges.new_zeros(2)
    for confidence, residual in read():
        sums += bincount(torch.bucketize(confidence, edges[1:]), residual, len(edges))
        is_lowest = confidence == edges[0]
        lowest += torch.stack([residual[is_lowest].sum(), is_lowest.sum()])
    sums[0] -= lowest[0] / lowest[1]
    return sums.abs().sum() / number


def _order_statistics(read: Reader, rank: torch.Tensor) -> torch.Tensor:
    """The confidences that would have some ranks, counted from 0, if all were sorted; exact, in constant memory.

    Read as an integer, the bits of positive floats are in the order of the floats. Each pass over the voxels counts the
    next bits, from the highest, among those that share all higher bits with the confidence of a rank (radix select).
    """
    bits = 21 - len(rank).bit_length()  # so that counts take at most 16 MiB
    remaining = 62  # of 64 bits: the highest two of floats below 2 are 0
    prefix = torch.zeros_like(rank)
    while remaining > 0:
        bits = min(bits, remaining)
        remaining -= bits
        prefixes, of_rank = prefix.unique(return_inverse=True)
        count = torch.zeros(len(prefixes) << bits, dtype=torch.int64, device=rank.device)
        for confidence, _ in read():
            high = confidence.view(torch.int64) >> remaining
            group = torch.bucketize(high >> bits, prefixes).clamp_max(len(prefixes) - 1)
            shared = prefixes[group] == high >> bits
            index = high - (prefixes[group] << bits) + (group << bits)
            count.index_add_(0, index[shared], torch.ones_like(index)[shared])
        counts = count.view(len(prefixes), -1)
        cumulative = counts.cumsum(1)
        digit = (cumulative[of_rank] <= rank[:, None]).sum(1)
        rank = rank - (cumulative - counts)[of_rank, digit]
        prefix = (prefix << bits) + digit
    return prefix.view(torch.float64)


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
        probabilities, and for a case without voxels in the region. With few voxels, chance adds to them.

        Args:
            reduction: As in `aggregate`.

        Raises:
            ValueError: No case has been added, or the reduction is unknown.
        """
        bins = self.case_bins_if_true
        if bins is None:
            bins = self.case_bins
            bins = CalibrationBins(bins.count, bins.confidence_sum * torch.nan, bins.num_correct)
        has_voxels = self.case_bins.count.sum(-1, keepdim=True) > 0  # as the error itself: the others have none
        fields = (bins.count, bins.confidence_sum, bins.num_correct)
        return self.reduce_bins(CalibrationBins(*(field.where(has_voxels, 0) for field in fields)), reduction)

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
