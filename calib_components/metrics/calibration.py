"""Calibration errors of class probabilities: ECE, CECE and adaptive ECE.

`calib_components.metrics.voxels` describes which voxels are used and how they are checked.
"""

from __future__ import annotations

import torch

from calib_components.arguments import check_flag, check_ignore_index
from calib_components.metrics.bins import CalibrationBins, bin_voxels, calibration_bins, check_num_bins
from calib_components.metrics.case_metric import CaseMetric
from calib_components.metrics.voxels import check_tensors, read_voxels, top_label

__all__ = ["CECEMetric", "CalibrationMetric", "ECEMetric", "adaptive_calibration_error"]


def adaptive_calibration_error(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    num_bins: int = 15,
    foreground_only: bool = True,
    ignore_index: int | None = None,
) -> torch.Tensor:
    """Adaptive ECE of each case: like top-label ECE, but with bins that hold equally many voxels.

    Bin edges are interpolated between the sorted confidences, and bins are `(lo, hi]`, as in the code published with
    Murugesan et al., MICCAI 2023. So the least confident voxel is in no bin; if several are equally confident, one of
    them is left out on average. Memory grows with the number of voxels used, because they are sorted.

    Shape:
        - y_pred: `(B, N, *S)`, with N >= 2 classes and any number of spatial dimensions.
        - y: `(B, 1, *S)` class index, or `(B, N, *S)` one-hot.
        - output: `(B,)`.

    Args:
        y_pred: Probabilities of any floating-point type.
        y: Ground truth, of any type that holds whole numbers.
        num_bins: Number of bins.
        foreground_only: Whether to use only voxels whose ground truth is not class 0.
        ignore_index: Ground-truth value of voxels to leave out.

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
    y_pred, y = check_tensors(y_pred, y)
    check_num_bins(num_bins)
    confidences: list[list[torch.Tensor]] = [[] for _ in y_pred]
    correct: list[list[torch.Tensor]] = [[] for _ in y_pred]
    for case, p, label in read_voxels(y_pred, y, foreground_only, ignore_index):
        confidence, predicted = top_label(p)
        confidences[case].append(confidence)
        correct[case].append(predicted == label)
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
    classwise: bool

    def __init__(self, num_bins: int = 15, foreground_only: bool = True, ignore_index: int | None = None) -> None:
        super().__init__()
        check_num_bins(num_bins)
        check_flag("foreground_only", foreground_only)
        check_ignore_index(ignore_index)
        self.num_bins = num_bins
        self.foreground_only = foreground_only
        self.ignore_index = ignore_index

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        bins = calibration_bins(y_pred, y, self.num_bins, self.foreground_only, self.ignore_index, self.classwise)
        return [bins.count, bins.confidence_sum, bins.num_correct]

    @property
    def case_bins(self) -> CalibrationBins:
        """Bins of each case."""
        return CalibrationBins(*self.gathered())

    @property
    def bins(self) -> CalibrationBins:
        """Bins of all voxels of all cases together, `B = 1`."""
        return self.case_bins.pooled()

    def case_values(self) -> torch.Tensor:
        return self.case_bins.expected_error()


class ECEMetric(_BinnedMetric):
    """Expected calibration error (ECE) of the predicted class, the top label.

    `sum_bins count / total * |mean confidence - accuracy|`, where the confidence of a voxel is its highest probability.

    `aggregate()` is the mean over cases and `aggregate("none")` the value of each case. A case without voxels is NaN
    and left out of the mean. `bins.expected_error()` is the error of all voxels pooled.

    Shape:
        - y_pred: `(B, N, *S)`, with N >= 2 classes, or a list of `(N, *S)`.
        - y: `(B, 1, *S)` class index or `(B, N, *S)` one-hot, or a list of these without `B`.

    Args:
        num_bins: Number of bins of equal width on (0, 1].
        foreground_only: Whether to use only voxels whose ground truth is not class 0.
        ignore_index: Ground-truth value of voxels to leave out.

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

    classwise = False


class CECEMetric(_BinnedMetric):
    """Classwise expected calibration error (CECE): the mean over all N classes, background included, of their ECE.

    The ECE of class `k` bins the probability of `k` at every voxel, which is correct where the ground truth is `k`.

    `aggregate()` is the mean over cases, `aggregate("none")` the value of each case, and `aggregate("mean_batch")` the
    mean over cases of each class, `(N,)`. A case without voxels is NaN and left out of the means.
    `bins.expected_error()` is the error of all voxels pooled.

    Shape:
        - y_pred: `(B, N, *S)`, with N >= 2 classes, or a list of `(N, *S)`.
        - y: `(B, 1, *S)` class index or `(B, N, *S)` one-hot, or a list of these without `B`.

    Args:
        num_bins: Number of bins of equal width on (0, 1].
        foreground_only: Whether to use only voxels whose ground truth is not class 0.
        ignore_index: Ground-truth value of voxels to leave out.

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

    classwise = True

    def aggregate(self, reduction: str = "mean") -> torch.Tensor:
        """Reduce the values as `CaseMetric.aggregate` does; "mean_batch" returns the mean of each class, `(N,)`."""
        if reduction == "mean_batch":
            errors = [bins.expected_error() for bins in self.case_bins.per_class()]
            return torch.stack(errors).nanmean(1)
        return super().aggregate(reduction)


class CalibrationMetric(ECEMetric):
    """ECE and CECE from one pass over the voxels.

    The metric itself is an `ECEMetric`: `aggregate()` is the ECE and `bins` are the top-label bins. Its attribute
    `cece` is a `CECEMetric` that is updated and reset with it: `cece.aggregate()` is the CECE and `cece.bins` are the
    classwise bins. Across several processes, `aggregate()` gathers the cases of both.

    Through `monai.handlers.IgniteMetricHandler`, the ECE appears under the name of the handler; read the CECE from
    `cece` after the epoch. To have both in `engine.state.metrics`, attach an `ECEMetric` and a `CECEMetric` instead.

    Shape:
        - y_pred: `(B, N, *S)`, with N >= 2 classes, or a list of `(N, *S)`.
        - y: `(B, 1, *S)` class index or `(B, N, *S)` one-hot, or a list of these without `B`.

    Args:
        num_bins: Number of bins of equal width on (0, 1].
        foreground_only: Whether to use only voxels whose ground truth is not class 0.
        ignore_index: Ground-truth value of voxels to leave out.

    Raises:
        TypeError: An option is not one of these.
        ValueError: An option has an unsuitable value. Calls raise the errors of `calibration_bins`.

    Attributes:
        cece: The classwise metric, a `CECEMetric`.

    Examples:
        >>> import torch
        >>> from calib_components.metrics import CalibrationMetric
        >>> y_pred = torch.tensor([[[0.2, 0.4], [0.7, 0.6], [0.1, 0.0]]])  # one case, three classes, two voxels
        >>> y = torch.tensor([[[1, 1]]])
        >>> metric = CalibrationMetric()
        >>> _ = metric(y_pred, y)
        >>> metric.aggregate()
        tensor(0.3500, dtype=torch.float64)
        >>> metric.cece.aggregate()
        tensor(0.2333, dtype=torch.float64)
    """

    def __init__(self, num_bins: int = 15, foreground_only: bool = True, ignore_index: int | None = None) -> None:
        self.cece = CECEMetric(num_bins, foreground_only, ignore_index)
        super().__init__(num_bins, foreground_only, ignore_index)

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        both = bin_voxels(y_pred, y, self.num_bins, self.foreground_only, self.ignore_index, classwise=(False, True))
        return [field for bins in both for field in (bins.count, bins.confidence_sum, bins.num_correct)]

    def extend(self, *data: torch.Tensor) -> None:
        super().extend(*data[:3])
        self.cece.extend(*data[3:])

    def reset(self) -> None:
        super().reset()
        self.cece.reset()

    def gathered(self) -> list[torch.Tensor]:
        own = super().gathered()
        self.cece.gathered()  # all processes gather together; afterwards a single one may read `cece`
        return own
