"""Calibration errors and proper scoring rules of class probabilities: ECE, CECE, NLL and Brier
score.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch

from calib_components.metrics.base import CaseMetric
from calib_components.metrics.bins import CalibrationBins, mean_over_classes
from calib_components.metrics.region_measures import (
    CLASSWISE,
    IF_TRUE,
    TOP_LABEL,
    RegionMeasures,
    measure_regions,
    names_of_sums,
)
from calib_components.metrics.regions import Region, choose_region


class RegionMetric(CaseMetric):
    """Base of the metrics of what `measure_regions` finds in a region.

    Arguments and errors: see `calib_components.metrics`.
    """

    measures: tuple[str, ...] = ()
    default_region: str | None = "foreground"
    num_bins = 15

    def __init__(
        self,
        foreground_only: bool | None = None,
        ignore_index: int | None = None,
        region: Any = None,
        sigmoid: bool = False,
    ) -> None:
        super().__init__()
        self.region = choose_region(region, foreground_only, self.default_region)
        self.ignore_index, self.sigmoid = ignore_index, sigmoid

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        measures, options = {self.region: self.measures}, (self.ignore_index, self.sigmoid)
        measured = measure_regions(y_pred, y, measures, self.num_bins, *options)
        return self.stored(measured[self.region])

    def stored(self, measured: RegionMeasures) -> list[torch.Tensor]:
        """Return what this metric stores of the measures of its region."""
        return [measured.sums[name] for name in names_of_sums(self.region, self.measures)]

    @property
    def measured(self) -> RegionMeasures:
        """The measures of all cases."""
        names = names_of_sums(self.region, self.measures)
        return RegionMeasures(dict(zip(names, self.gathered(), strict=True)))

    def get_buffer(self) -> torch.Tensor:
        return self.measured.scores[self.measures[0]]


class NLLMetric(RegionMetric):
    """Negative log-likelihood (NLL): mean over voxels (and channels of sigmoids) of `-log s_y`, in
    nats.

    `s_y` is the probability of the true class. Those below the smallest normal float32 (87.3 nats),
    in float16 below half its smallest step (17.3 nats), are replaced by it, so that a single voxel
    does not make the mean infinite. Likewise, a probability of 1 of a sigmoid in float16 or
    bfloat16 counts as half a step less (8.3 or 6.2 nats where the truth is 0).

    Arguments and errors: see `calib_components.metrics`. The default region is "foreground".

    Examples:
        >>> import torch
        >>> from calib_components.metrics import NLLMetric
        >>> metric = NLLMetric()
        >>> _ = metric(torch.tensor([[[0.1, 0.3], [0.9, 0.7]]]), torch.tensor([[[1, 1]]]))
        >>> metric.aggregate()  # -(log 0.9 + log 0.7) / 2
        tensor(0.2310, dtype=torch.float64)
    """

    measures = ("nll",)


class BrierMetric(RegionMetric):
    """Brier score: mean over voxels of `sum_k (s_k - q_k)^2`, from 0 (best) to 2.

    `s` are the probabilities and `q` is the one-hot ground truth; of several raters, the mean over
    them. A channel of sigmoids counts as two classes. Used like `NLLMetric`.

    Source: Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather
        Review 78, 1950.
    """

    measures = ("brier",)


class ECEMetric(RegionMetric):
    """Expected calibration error (ECE) of the predicted class, the top label.

    `sum_bins count / total * |mean confidence - accuracy|`, where the confidence of a voxel is its
    highest probability. `bins.expected_error()` is the error of all voxels pooled.

    Arguments and errors: see `calib_components.metrics`. `region` is required.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017.

    Examples:
        >>> import torch
        >>> from calib_components.metrics import ECEMetric
        >>> y_pred = torch.tensor([[[0.1, 0.3, 0.4], [0.9, 0.7, 0.6]]])  # 3 voxels
        >>> y = torch.tensor([[[1, 1, 0]]])
        >>> metric = ECEMetric(region="foreground")
        >>> _ = metric(y_pred, y)
        >>> metric.aggregate()  # of two voxels: (|0.9 - 1| + |0.7 - 1|) / 2
        tensor(0.2000, dtype=torch.float64)
    """

    default_region = None
    kind = TOP_LABEL

    def __init__(
        self,
        num_bins: int = 15,
        foreground_only: bool | None = None,
        ignore_index: int | None = None,
        region: Any = None,
        sigmoid: bool = False,
    ) -> None:
        super().__init__(foreground_only, ignore_index, region, sigmoid)
        self.num_bins, self.measures = num_bins, (self.kind, "if_true")

    @property
    def case_bins(self) -> CalibrationBins:
        """Bins of each case."""
        return self.measured.bins[self.kind]

    @property
    def bins(self) -> CalibrationBins:
        """Bins of all voxels of all cases together, `B = 1`."""
        return self.case_bins.pooled()

    @property
    def case_bins_if_true(self) -> CalibrationBins | None:
        """Bins of each case that are expected if the probabilities are true; None for "near", which
        has no such form.

        Counts are float64.
        """
        if self.region.by_prediction:
            bins = self.case_bins
            return CalibrationBins(bins.count.double(), bins.confidence_sum, bins.confidence_sum)
        return self.measured.bins.get(self.kind + IF_TRUE)

    @property
    def bins_if_true(self) -> CalibrationBins | None:
        """The same of all voxels of all cases together, `B = 1`."""
        bins = self.case_bins_if_true
        return None if bins is None else bins.pooled()

    def get_buffer(self) -> torch.Tensor:
        return self.case_bins.expected_error()

    def aggregate(self, reduction: str = "mean") -> torch.Tensor:
        return self.reduce(self.case_bins.expected_error(mean=reduction != "mean_batch"), reduction)

    def aggregate_if_true(self, reduction: str = "mean") -> torch.Tensor:
        """Reduce the values that the error would have with many voxels if the probabilities were
        true.

        They are 0 for a region chosen by the prediction, and NaN for "near", where they depend on
        more than the probabilities, and for a case without voxels in the region. With few voxels,
        chance adds to them.
        """
        observed, bins = self.case_bins.expected_error(mean=False), self.case_bins_if_true
        errors = torch.full_like(observed, torch.nan)
        if bins is not None:
            errors = bins.expected_error(mean=False).where(~observed.isnan(), torch.nan)
        if reduction != "mean_batch":
            errors = mean_over_classes(errors)
        return self.reduce(errors, reduction)


class CECEMetric(ECEMetric):
    """Classwise expected calibration error (CECE): the mean over all N classes, background
    included, of their ECE.

    The ECE of class `k` bins the probability of `k` at every voxel, which is correct where the
    ground truth is `k`. Arguments, attributes and errors are those of `ECEMetric`;
    `aggregate("mean_batch")` is the mean over cases of each class, `(N,)`.

    Source: Kull et al., "Beyond temperature scaling: Obtaining well-calibrated multi-class
        probabilities with Dirichlet calibration", NeurIPS 2019.
    """

    kind = CLASSWISE


class CalibrationMetric(ECEMetric):
    """ECE, CECE, NLL and Brier score from one pass over the voxels, in one region or several.

    The metric itself is an `ECEMetric` of its region: `aggregate()` is the ECE and `bins` are the
    top-label bins. Its attributes `cece`, `nll` and `brier` are metrics with the values of the same
    calls, such that `cece.aggregate()` is the CECE. `regions` holds one such metric for each
    further region.

    `aggregate_if_true()` is the value that the error would have if the probabilities were true, see
    `calib_components.metrics.region_measures`.

    Other arguments and errors: see `calib_components.metrics`.

    Args:
        region: See `calib_components.metrics`; required.
        regions: Further regions.

    Attributes:
        cece: A `CECEMetric`.
        nll: An `NLLMetric`.
        brier: A `BrierMetric`.
        regions: A `CalibrationMetric` for each further region, by its name as given.

    Examples:
        >>> import torch
        >>> from calib_components.metrics import CalibrationMetric
        >>> y_pred = torch.tensor([[[0.2, 0.4], [0.7, 0.6], [0.1, 0.0]]])  # 2 voxels
        >>> y = torch.tensor([[[1, 0]]])
        >>> metric = CalibrationMetric(region="foreground", regions=["all"])
        >>> _ = metric(y_pred, y)
        >>> metric.aggregate()  # of the first voxel, |0.7 - 1|
        tensor(0.3000, dtype=torch.float64)
        >>> # weights 0.8 and 0.6: (0.8 * |0.7 - 0.7 / 0.8| + 0.6 * |0.6 - 0.6 / 0.6|) / 1.4
        >>> metric.aggregate_if_true()
        tensor(0.2714, dtype=torch.float64)
        >>> metric.regions["all"].aggregate(), metric.regions["all"].cece.aggregate()
        (tensor(0.4500, dtype=torch.float64), tensor(0.3000, dtype=torch.float64))
    """

    parts: Sequence[RegionMetric] = ()  # that it measures, too

    def __init__(
        self,
        num_bins: int = 15,
        foreground_only: bool | None = None,
        ignore_index: int | None = None,
        region: Any = None,
        sigmoid: bool = False,
        regions: Sequence[Any] = (),
    ) -> None:
        super().__init__(num_bins, foreground_only, ignore_index, region, sigmoid)
        self.measures = (*self.measures, CLASSWISE, "nll", "brier")
        self.cece = CECEMetric(num_bins, None, ignore_index, self.region, sigmoid)
        self.nll = NLLMetric(None, ignore_index, self.region, sigmoid)
        self.brier = BrierMetric(None, ignore_index, self.region, sigmoid)
        names = [value if isinstance(value, str) else Region.parse(value).name for value in regions]
        further = [
            CalibrationMetric(num_bins, None, ignore_index, value, sigmoid) for value in regions
        ]
        self.regions = dict(zip(names, further, strict=True))
        parts = [[metric, *metric.parts] for metric in self.regions.values()]
        self.parts = [self.cece, self.nll, self.brier, *chain.from_iterable(parts)]

    def __call__(self, *cases: Any, **options: Any) -> Any:
        self._measured: list[dict[Region, RegionMeasures]] = []
        values = super().__call__(*cases, **options)
        for measured in self._measured:  # a call that fails adds nothing anywhere
            for part in self.parts:
                part.extend(*part.stored(measured[part.region]))
        return values

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        """Measure all regions in one pass."""
        measures = {part.region: self.measures for part in (self, *self.parts)}
        options = self.num_bins, self.ignore_index, self.sigmoid
        measured = measure_regions(y_pred, y, measures, *options)
        self._measured.append(measured)
        return self.stored(measured[self.region])

    def reset(self) -> None:
        """Forget the cases, those of the other metrics, too."""
        super().reset()
        for part in self.parts:
            part.reset()
