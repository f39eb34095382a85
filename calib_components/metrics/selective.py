"""Risk-coverage curves: whether the confidence of voxels tells which of them are wrong."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from calib_components.arguments import check_flag, check_ignore_index
from calib_components.metrics.case_metric import CaseMetric
from calib_components.metrics.regions import Region
from calib_components.metrics.threads import one_thread
from calib_components.metrics.voxels import ENLARGE, check_tensors, read_voxels

__all__ = ["RiskCoverage", "RiskCoverageMetric", "risk_coverage"]

# 1 %, ... 99 %, then 99.1 %, ... 99.9 %, then 99.91 %, ... 100 %: few voxels are wrong where most are background.
COVERAGE = torch.tensor(
    [i / 100 for i in range(1, 100)] + [i / 1000 for i in range(991, 1000)] + [i / 10000 for i in range(9991, 10001)],
    dtype=torch.float64,
    device="cpu",
)
UNCERTAIN = 0.05  # share of the voxels that are called uncertain
PENDING = 2**20  # voxels that wait until equal confidences are joined


class RiskCoverage(NamedTuple):
    """Risk-coverage curve of each case, see `risk_coverage`.

    Attributes:
        coverage: Shares of the voxels, `(K,)`, from 0.01 to 1, float64.
        risk: Error rate of the most confident voxels, at each coverage, `(B, K)`.
        aurc: Area under the risk-coverage curve, `(B,)`.
        error_share: Share of the errors that are among the 5 % least confident voxels, `(B,)`.
    """

    coverage: torch.Tensor
    risk: torch.Tensor
    aurc: torch.Tensor
    error_share: torch.Tensor


@one_thread()
def risk_coverage(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    region: Any = "all",
    ignore_index: int | None = None,
    sigmoid: bool = False,
) -> RiskCoverage:
    """Error rate among the most confident voxels of each case, over the share of voxels kept.

    The confidence of a voxel is its highest probability, and it is an error where the predicted class is not the ground
    truth. `risk` at a coverage `c` is the error rate of the share `c` of voxels with the highest confidence; at 1, it
    is that of all. The area under the curve (AURC) is the mean of the risk over every number of voxels kept, from 1 to
    all; 0 is best. Where confidences are equal, the values are the mean over all orders of these voxels.

    `error_share` is what an expert who reviews the 5 % least confident voxels would find of all errors; if confidence
    said nothing of errors, it would be 0.05.

    Memory grows with the number of different confidences of a case, by about 50 bytes for each. They are far fewer than
    its voxels where most are background.

    Shape:
        - y_pred: `(B, N, *S)`, with N classes or channels and any number of spatial dimensions.
        - y: `(B, 1, *S)` class index, or `(B, N, *S)` one-hot; for sigmoids 0 or 1, `(B, N, *S)`.

    Args:
        y_pred: Probabilities of any floating-point type.
        y: Ground truth, of any type that holds whole numbers.
        region: Which voxels count, see `calib_components.metrics.regions`: a `Region`, its name, or class indices.
        ignore_index: Ground-truth value of voxels to leave out.
        sigmoid: Whether each channel is a binary problem of its own, with a probability from a sigmoid and ground truth
            0 or 1. One channel always is. A voxel counts once in each channel.

    Returns:
        Float64; NaN for a case without voxels, and `error_share` also for one without errors.

    Raises:
        TypeError: An input is not a tensor, or `y_pred` is not of a floating-point type.
        ValueError: Shapes do not match or hold no voxel, `y_pred` does not hold probabilities, `y` holds invalid
            labels, or an option has an unsuitable value.

    Sources: El-Yaniv and Wiener, "On the Foundations of Noise-free Selective Classification", JMLR 11, 2010, and
    Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017 (the curve). Jaeger et al.,
    "A Call to Reflect on Evaluation Practices for Failure Detection in Image Classification", ICLR 2023 (the area).

    Examples:
        >>> import torch
        >>> from calib_components.metrics import risk_coverage
        >>> p = torch.tensor([0.9, 0.8, 0.7, 0.6])  # of class 1
        >>> y_pred, y = torch.stack([1 - p, p]).unsqueeze(0), torch.tensor([[[1, 1, 0, 1]]])
        >>> curve = risk_coverage(y_pred, y)
        >>> curve.aurc  # (0 + 0 + 1 / 3 + 1 / 4) / 4
        tensor([0.1458], dtype=torch.float64)
        >>> curve.risk[:, [49, 74, -1]]  # of the 50 %, 75 % and 100 % most confident voxels
        tensor([[0.0000, 0.3333, 0.2500]], dtype=torch.float64)
    """
    y_pred, y = check_tensors(y_pred, y, sigmoid)
    coverage = COVERAGE.to(y_pred.device, copy=True)
    risk = torch.full((len(y_pred), len(coverage)), torch.nan, dtype=torch.float64, device=y_pred.device)
    aurc, error_share = risk[:, :2].clone().unbind(1)
    ranking = _Ranking()

    def finish(case: int) -> None:
        count, errors = ranking.by_confidence()
        risk[case], aurc[case], error_share[case] = _curve(count, errors)

    case = -1
    for voxels in read_voxels(y_pred, y, Region.parse(region), ignore_index, sigmoid, enlarge=ENLARGE):
        if voxels.case != case:
            if case >= 0:
                finish(case)
            case, ranking = voxels.case, _Ranking()
        confidence, predicted = voxels.top
        # In the type of y_pred, the probability 1 - p of a sigmoid's background has as few values as p.
        confidence = confidence.to(y_pred.dtype)
        ranking.add(confidence if confidence.dtype == torch.float64 else confidence.float(), predicted != voxels.label)
    if case >= 0:
        finish(case)
    return RiskCoverage(coverage, risk, aurc, error_share)


class _DistinctNumbers:
    """Different numbers, and how often each was added."""

    def __init__(self) -> None:
        self.values, self.count = np.empty(0), np.empty(0, np.int64)
        self.pending: list[NDArray[Any]] = []
        self.limit = PENDING

    def add(self, values: torch.Tensor) -> None:
        self.pending.append(values.cpu().numpy())
        if sum(map(len, self.pending)) > self.limit:
            self.join()

    def join(self) -> None:
        """Count what is pending; NumPy sorts many times faster than PyTorch on a CPU."""
        if not self.pending:
            return
        values, count = np.unique(np.concatenate(self.pending), return_counts=True)
        if len(self.values):
            values, index = np.unique(np.concatenate([self.values, values]), return_inverse=True)
            count = np.bincount(index, np.concatenate([self.count, count])).astype(np.int64)
        self.values, self.count, self.pending = values, count, []
        self.limit = PENDING + 2 * len(values)  # so that joining takes n log n


class _Ranking:
    """Different confidences of the voxels of a case, each with its number of voxels and of errors."""

    def __init__(self) -> None:
        self.all, self.wrong = _DistinctNumbers(), _DistinctNumbers()

    def add(self, confidence: torch.Tensor, wrong: torch.Tensor) -> None:
        self.all.add(confidence)
        self.wrong.add(confidence[wrong])

    def by_confidence(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Numbers of voxels and of errors, the highest confidence first."""
        self.all.join()
        self.wrong.join()
        errors = np.zeros(len(self.all.values))
        errors[np.searchsorted(self.all.values, self.wrong.values)] = self.wrong.count
        return torch.from_numpy(self.all.count).double().flip(0), torch.from_numpy(errors).flip(0)


def _curve(count: torch.Tensor, errors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Risk at each coverage, AURC and share of errors, from the groups of equal confidence `(groups,)`.

    In a random order, the first `k` voxels hold `before + (k - start) * rate` errors on average, where a group with the
    error rate `rate` begins after `start` voxels with `before` errors.
    """
    end, rate = count.cumsum(0), errors / count
    start, before = end - count, errors.cumsum(0) - errors
    offset = before - start * rate
    voxels, wrong = end[-1], errors.sum()
    # Sum of offset / k + rate over the k voxels of each group.
    aurc = (offset * _sum_of_inverses(start, end) + rate * count).sum() / voxels

    def errors_among(kept: torch.Tensor) -> torch.Tensor:
        group = torch.searchsorted(end, kept).clamp_max(len(end) - 1)
        return offset[group] + kept * rate[group]

    kept = COVERAGE * voxels
    certain = errors_among((1 - UNCERTAIN) * voxels)
    return errors_among(kept) / kept, aurc, 1 - certain / wrong


def _sum_of_inverses(start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """`1 / (start + 1) + ... + 1 / end`, a difference of harmonic numbers, without cancellation of large ones."""

    def rest(n: torch.Tensor) -> torch.Tensor:  # of the asymptotic series, after the logarithm
        return 1 / (2 * n) - 1 / (12 * n**2) + 1 / (120 * n**4)

    large = start.clamp_min(100)
    near = torch.digamma(end + 1) - torch.digamma(start + 1)
    far = torch.log1p((end - large) / large) + rest(end) - rest(large)
    return torch.where(start < 100, near, far)


class RiskCoverageMetric(CaseMetric):
    """Risk-coverage curve of each case and the area under it (AURC), see `risk_coverage`.

    `aggregate()` is the mean AURC over cases and `aggregate("none")` that of each case. A case without voxels is NaN
    and left out of the mean.

    Shape:
        - y_pred: `(B, N, *S)`, with N classes or channels, or a list of `(N, *S)`.
        - y: `(B, 1, *S)` class index or `(B, N, *S)` one-hot, for sigmoids 0 or 1, `(B, N, *S)`; or a list of these
          without `B`.

    Args:
        region: Which voxels count, see `calib_components.metrics.regions`: a `Region`, its name, or class indices.
        ignore_index: Ground-truth value of voxels to leave out.
        sigmoid: Whether each channel is a binary problem of its own, with a probability from a sigmoid and ground truth
            0 or 1. One channel always is.

    Raises:
        TypeError: An option is not one of these.
        ValueError: An option has an unsuitable value. Calls raise the errors of `risk_coverage`.

    Examples:
        >>> import torch
        >>> from calib_components.metrics import RiskCoverageMetric
        >>> metric = RiskCoverageMetric()
        >>> _ = metric(torch.tensor([[[0.1, 0.3, 0.4], [0.9, 0.7, 0.6]]]), torch.tensor([[[1, 1, 0]]]))
        >>> metric.aggregate()  # (0 + 0 + 1 / 3) / 3
        tensor(0.1111, dtype=torch.float64)
        >>> metric.error_share  # 5 % of three voxels are 0.15 of one
        tensor([0.1500], dtype=torch.float64)
    """

    def __init__(self, region: Any = "all", ignore_index: int | None = None, sigmoid: bool = False) -> None:
        super().__init__()
        check_ignore_index(ignore_index)
        check_flag("sigmoid", sigmoid)
        self.region = Region.parse(region)
        self.ignore_index = ignore_index
        self.sigmoid = sigmoid

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        curve = risk_coverage(y_pred, y, self.region, self.ignore_index, self.sigmoid)
        return [curve.risk, curve.aurc, curve.error_share]

    @property
    def coverage(self) -> torch.Tensor:
        """Shares of the voxels, from 0.01 to 1, `(K,)`."""
        return COVERAGE.clone()

    @property
    def risk(self) -> torch.Tensor:
        """Error rate of the most confident share `coverage` of the voxels of each case, `(cases, K)`."""
        return self.gathered()[0]

    @property
    def error_share(self) -> torch.Tensor:
        """Share of the errors that are among the 5 % least confident voxels of each case, `(cases,)`."""
        return self.gathered()[2]

    def case_values(self) -> torch.Tensor:
        return self.gathered()[1]
