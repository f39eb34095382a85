"""Risk-coverage curves: whether the confidence of voxels tells which of them are wrong."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch

from calib_components.metrics.base import CaseMetric
from calib_components.metrics.regions import Region
from calib_components.metrics.voxels import Voxels, check_tensors, read_voxels

# 1 %, ... 99 %, then 99.1 %, ... 99.9 %, then 99.91 %, ... 100 %: few voxels are wrong where most
# are background.
COVERAGE = torch.tensor(
    [i / 100 for i in range(1, 100)]
    + [i / 1000 for i in range(991, 1000)]
    + [i / 10000 for i in range(9991, 10001)],
    dtype=torch.float64,
)
UNCERTAIN = 0.05  # share of the voxels that are called uncertain


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


def risk_coverage(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    region: Any = "all",
    ignore_index: int | None = None,
    sigmoid: bool = False,
) -> RiskCoverage:
    """Error rate among the most confident voxels of each case, over the share of voxels kept.

    The confidence of a voxel is its highest probability, and it is an error where the predicted
    class is not the ground truth. `risk` at a coverage `c` is the error rate of the share `c` of
    voxels with the highest confidence. The area under the curve (AURC) is the mean of the risk over
    every number of voxels kept, from 1 to all; 0 is best. Where confidences are equal, the values
    are the mean over all orders of these voxels. `error_share` would be 0.05 if confidence said
    nothing of errors. Memory grows by about 50 bytes with each different confidence of a case.

    Args:
        y_pred, y, region, ignore_index, sigmoid: See `calib_components.metrics`. A voxel counts
            once in each channel of sigmoids.

    Returns:
        Float64; NaN for a case without voxels, and `error_share` also for one without errors.

    Sources: El-Yaniv and Wiener, "On the Foundations of Noise-free Selective Classification", JMLR
        11, 2010, and Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks",
        NeurIPS 2017 (the curve). Jaeger et al., "A Call to Reflect on Evaluation Practices for
        Failure Detection in Image Classification", ICLR 2023 (the area).

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
    risk = torch.full(
        (len(y_pred), len(coverage)), torch.nan, dtype=torch.float64, device=y_pred.device
    )
    aurc, error_share = risk[:, :2].clone().unbind(1)
    voxels = read_voxels(y_pred, y, ignore_index=ignore_index, sigmoid=sigmoid)
    selected = (part for part in map(Region.parse(region).select, voxels) if len(part.label) > 0)
    for case, parts in itertools.groupby(selected, lambda part: part.case):
        risk[case], aurc[case], error_share[case] = _curve(*_count(parts, y_pred.dtype))
    return RiskCoverage(coverage, risk, aurc, error_share)


def _count(parts: Iterable[Voxels], dtype: torch.dtype) -> list[torch.Tensor]:
    """Numbers of voxels and of errors with each confidence, the highest first."""
    counted = []
    for voxels in parts:
        # In the type of y_pred, the probability 1 - p of a sigmoid's background has as few values
        # as p. Positive floats, read as integers, keep their order; the last bit says whether the
        # voxel is wrong.
        confidence = voxels.confidence.to(dtype)
        bits = confidence.float().view(torch.int32)
        if dtype == torch.float64:
            bits = confidence.view(torch.int64)
        keys = (2 * bits.long() + (voxels.predicted != voxels.label)).cpu().numpy()
        counted.append(np.unique(keys, return_counts=True))
    keys, count = (np.concatenate(each) for each in zip(*counted, strict=True))
    _, group = np.unique(-(keys >> 1), return_inverse=True)
    return [torch.from_numpy(np.bincount(group, each)) for each in (count, count * (keys & 1))]


def _curve(
    count: torch.Tensor, errors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Risk at each coverage, AURC and share of errors, from the groups of equal confidence
    `(groups,)`.

    In a random order, the first `k` voxels hold `before + (k - start) * rate` errors on average,
    where a group with the error rate `rate` begins after `start` voxels with `before` errors.
    """
    end, rate = count.cumsum(0), errors / count
    start, before = end - count, errors.cumsum(0) - errors
    offset = before - start * rate
    voxels, wrong = end[-1], errors.sum()
    # Sum of offset / k + rate over the k voxels of each group, where those of 1 / k are harmonic
    # numbers.
    inverses = torch.digamma(end + 1) - torch.digamma(start + 1)
    aurc = (offset * inverses + rate * count).sum() / voxels

    def errors_among(kept: torch.Tensor) -> torch.Tensor:
        group = torch.searchsorted(end, kept).clamp_max(len(end) - 1)
        return offset[group] + kept * rate[group]

    kept = COVERAGE * voxels
    certain = errors_among((1 - UNCERTAIN) * voxels)
    return errors_among(kept) / kept, aurc, 1 - certain / wrong


class RiskCoverageMetric(CaseMetric):
    """Risk-coverage curve of each case and the area under it (AURC), see `risk_coverage`.

    `aggregate()` is the mean AURC over cases and `aggregate("none")` that of each case. A case
    without voxels is NaN and left out of the mean. The attributes `coverage`, `risk` and
    `error_share` hold the rest of `RiskCoverage`.

    Arguments and errors: see `calib_components.metrics`.
    """

    names = RiskCoverage._fields[1:]

    def __init__(
        self, region: Any = "all", ignore_index: int | None = None, sigmoid: bool = False
    ) -> None:
        super().__init__()
        self.region, self.ignore_index, self.sigmoid = Region.parse(region), ignore_index, sigmoid
        self.coverage = COVERAGE.clone()

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        return [*risk_coverage(y_pred, y, self.region, self.ignore_index, self.sigmoid)[1:]]

    def get_buffer(self) -> torch.Tensor:
        return self.aurc
