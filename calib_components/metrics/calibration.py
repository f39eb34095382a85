"""Calibration errors of class probabilities: ECE and CECE, with NLL and Brier score in any number of regions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch

from calib_components.metrics.bins import CalibrationBins, mean_over_classes
from calib_components.metrics.measuring import Measured
from calib_components.metrics.regions import Region
from calib_components.metrics.scores import BrierMetric, NLLMetric, RegionMetric


class ECEMetric(RegionMetric):
    """Expected calibration error (ECE) of the predicted class, the top label.

    `sum_bins count / total * |mean confidence - accuracy|`, where the confidence of a voxel is its highest probability.
    `bins.expected_error()` is the error of all voxels pooled.

    Arguments and errors: see `calib_components.metrics`. The default region is "foreground".

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

    def __init__(
        self,
        num_bins: int = 15,
        foreground_only: bool | None = None,
        ignore_index: int | None = None,
        region: Any = None,
        sigmoid: bool = False,
    ) -> None:
        super().__init__(foreground_only, ignore_index, region, sigmoid)
        self.num_bins = num_bins
        self.measures = (self.kind, "if_true")

    def stored(self, found: Measured) -> list[torch.Tensor]:
        bins = (found.bins[name] for name in (self.kind, f"{self.kind}_if_true") if name in found.bins)
        return [field for each in bins for field in vars(each).values()]

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
            return CalibrationBins(*self.gathered()[3:])
        if self.region.by_prediction:
            bins = self.case_bins
            return CalibrationBins(bins.count.double(), bins.confidence_sum, bins.confidence_sum)
        return None

    @property
    def bins_if_true(self) -> CalibrationBins | None:
        """The same of all voxels of all cases together, `B = 1`."""
        bins = self.case_bins_if_true
        return None if bins is None else bins.pooled()

    def get_buffer(self) -> torch.Tensor:
        return self.case_bins.expected_error()

    def aggregate(self, reduction: str = "mean") -> torch.Tensor:
        return self._reduce_errors(self.case_bins.expected_error(mean=False), reduction)

    def aggregate_if_true(self, reduction: str = "mean") -> torch.Tensor:
        """Reduce the values that the error would have with many voxels if the probabilities were true.

        They are 0 for a region chosen by the prediction, and NaN for "band", where they depend on more than the
        probabilities, and for a case without voxels in the region. With few voxels, chance adds to them.
        """
        bins, observed = self.case_bins_if_true, self.case_bins.expected_error(mean=False)
        errors = observed * torch.nan if bins is None else bins.expected_error(mean=False)
        return self._reduce_errors(errors.where(~observed.isnan(), torch.nan), reduction)

    def _reduce_errors(self, errors: torch.Tensor, reduction: str) -> torch.Tensor:
        return self.reduce(errors if reduction == "mean_batch" else mean_over_classes(errors), reduction)


class CECEMetric(ECEMetric):
    """Classwise expected calibration error (CECE): the mean over all N classes, background included, of their ECE.

    The ECE of class `k` bins the probability of `k` at every voxel, which is correct where the ground truth is `k`.
    Arguments, attributes and errors are those of `ECEMetric`; `aggregate("mean_batch")` is the mean over cases of each
    class, `(N,)`.

    Source: Kull et al., "Beyond temperature scaling: Obtaining well-calibrated multi-class probabilities with Dirichlet
    calibration", NeurIPS 2019.
    """

    kind = "classwise"


class CalibrationMetric(ECEMetric):
    """ECE, CECE, NLL and Brier score from one pass over the voxels, in one region or several.

    The metric itself is an `ECEMetric` of its region: `aggregate()` is the ECE and `bins` are the top-label bins. Its
    attributes `cece`, `nll` and `brier` are metrics with the values of the same calls, such that `cece.aggregate()` is
    the CECE. `regions` holds one such metric for each further region.

    `aggregate_if_true()` is the value that the error would have if the probabilities were true, see
    `calib_components.metrics.measuring`.

    Other arguments and errors: see `calib_components.metrics`.

    Args:
        region: See `calib_components.metrics`; None is "predicted", a region in which true probabilities have no error.
        regions: Further regions.

    Attributes:
        cece: A `CECEMetric`.
        nll: An `NLLMetric`.
        brier: A `BrierMetric`.
        regions: A `CalibrationMetric` for each further region, by its name as given.

    Examples:
        >>> import torch
        >>> from calib_components.metrics import CalibrationMetric
        >>> y_pred = torch.tensor([[[0.2, 0.4], [0.7, 0.6], [0.1, 0.0]]])  # one case, three classes, two voxels
        >>> y = torch.tensor([[[1, 0]]])
        >>> metric = CalibrationMetric(region="foreground", regions=["all"])
        >>> _ = metric(y_pred, y)
        >>> metric.aggregate()  # of the first voxel, |0.7 - 1|
        tensor(0.3000, dtype=torch.float64)
        >>> metric.aggregate_if_true()  # weights 0.8 and 0.6: (0.8 * |0.7 - 0.7 / 0.8| + 0.6 * |0.6 - 0.6 / 0.6|) / 1.4
        tensor(0.2714, dtype=torch.float64)
        >>> metric.regions["all"].aggregate(), metric.regions["all"].cece.aggregate()
        (tensor(0.4500, dtype=torch.float64), tensor(0.3000, dtype=torch.float64))
    """

    default_region = "predicted"
    parts: Sequence[RegionMetric] = ()

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
        self.measures = (*self.measures, "classwise", "nll", "brier")
        self.cece = CECEMetric(num_bins, None, ignore_index, self.region, sigmoid)
        self.nll = NLLMetric(None, ignore_index, self.region, sigmoid)
        self.brier = BrierMetric(None, ignore_index, self.region, sigmoid)
        names = [value if isinstance(value, str) else Region.parse(value).name for value in regions]
        further = [CalibrationMetric(num_bins, None, ignore_index, value, sigmoid) for value in regions]
        self.regions = dict(zip(names, further, strict=True))
        self.parts = [self, self.cece, self.nll, self.brier]  # metrics that store what one call measures
        for metric in self.regions.values():
            self.parts += metric.parts

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        regions = list(dict.fromkeys(part.region for part in self.parts))
        found = dict(zip(regions, self.measure_in(regions, y_pred, y), strict=True))
        values = [part.stored(found[part.region]) for part in self.parts]
        self._sizes = [len(each) for each in values]
        return [value for each in values for value in each]

    def extend(self, *data: Any) -> None:
        values = iter(data)
        for part, size in zip(self.parts, self._sizes, strict=True):
            ECEMetric.extend(part, *islice(values, size))

    def reset(self) -> None:
        for part in self.parts or [self]:
            ECEMetric.reset(part)
