"""Calibration errors of class probabilities: ECE and CECE, with NLL and Brier score in any number of regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from calib_components.errors import InputError, check_number
from calib_components.metrics.bins import CalibrationBins
from calib_components.metrics.measuring import measure_regions
from calib_components.metrics.regions import Region
from calib_components.metrics.scores import BrierMetric, NLLMetric, RegionMetric
from calib_components.metrics.volumes import check_structures

__all__ = ["CECEMetric", "CalibrationMetric", "ECEMetric", "measure_regions"]


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
        self.measures: tuple[str, ...] = (self.kind, "if_true")

    @property
    def case_bins(self) -> CalibrationBins:
        """Bins of each case."""
        return CalibrationBins(*self.found(self.kind))

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
            return CalibrationBins(*self.found(f"{self.kind}_if_true"))
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
        """
        observed, bins = self.case_bins, self.case_bins_if_true
        if bins is None:
            bins = CalibrationBins(observed.count, observed.confidence_sum * torch.nan, observed.num_correct)
        has_voxels = observed.count.sum(-1, keepdim=True) > 0  # as the error itself: the others have none
        return self.reduce_bins(
            CalibrationBins(*(field.where(has_voxels, 0) for field in vars(bins).values())), reduction
        )

    def aggregate(self, reduction: str = "mean") -> torch.Tensor:
        return self.reduce_bins(self.case_bins, reduction)

    def reduce_bins(self, bins: CalibrationBins, reduction: str) -> torch.Tensor:
        """Reduce the errors of the bins of cases."""
        return self.reduce(bins.expected_error(), reduction)

    def case_values(self) -> torch.Tensor:
        return self.case_bins.expected_error()


class CECEMetric(ECEMetric):
    """Classwise expected calibration error (CECE): the mean over all N classes, background included, of their ECE.

    The ECE of class `k` bins the probability of `k` at every voxel, which is correct where the ground truth is `k`.
    Arguments, attributes and errors are those of `ECEMetric`; `aggregate("mean_batch")` is the mean over cases of each
    class, `(N,)`.

    Source: Kull et al., "Beyond temperature scaling: Obtaining well-calibrated multi-class probabilities with Dirichlet
    calibration", NeurIPS 2019.
    """

    kind = "classwise"

    def reduce_bins(self, bins: CalibrationBins, reduction: str) -> torch.Tensor:
        if reduction == "mean_batch":
            return torch.stack([of_class.expected_error() for of_class in bins.per_class()]).nanmean(1)
        return super().reduce_bins(bins, reduction)


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
        structures: Class indices by name, such as `{"heart": [1, 2]}`; each is a further region, "structure_heart".
            Not for sigmoids, where 0 and 1 are labels of every channel.
        temperature: Number or tensor of one element by which the logits of `y_pred` were divided, read at every call;
            None is 1. The region "plausible" is decided without it, so that it has the same voxels at any temperature.
        draws: How often labels are drawn from the probabilities, for `aggregate_resampled` of structures.
        lowest: Takes the place of lower probabilities in the NLL, such as half a step of probabilities that were
            rounded to 8 bits, in which a 0 need not have been one.
        highest: Takes the place of higher probabilities of sigmoids in the NLL, likewise.

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

    def __init__(
        self,
        num_bins: int = 15,
        foreground_only: bool | None = None,
        ignore_index: int | None = None,
        region: Any = None,
        sigmoid: bool = False,
        regions: Sequence[Any] = (),
        structures: Mapping[str, Sequence[int]] | None = None,
        temperature: float | torch.Tensor | None = None,
        draws: int = 0,
        lowest: float = 0.0,
        highest: float = 1.0,
    ) -> None:
        super().__init__(num_bins, foreground_only, ignore_index, region, sigmoid)
        if structures and sigmoid:
            raise InputError("structures must be None for sigmoids, whose labels are 0 and 1 in each channel.")
        check_number("lowest", lowest, 0, 1)
        check_number("highest", highest, 0, 1)
        self.measures = (*self.measures, "classwise", "nll", "brier")
        self.temperature, self.options = temperature, {"draws": draws, "lowest": lowest, "highest": highest}
        self.cece = CECEMetric(region=self.region, sigmoid=sigmoid).view(self, 0)
        self.nll = NLLMetric(region=self.region, sigmoid=sigmoid).view(self, 0)
        self.brier = BrierMetric(region=self.region, sigmoid=sigmoid).view(self, 0)
        parsed = [(value if isinstance(value, str) else None, Region.parse(value)) for value in regions]
        further = [(name or region.name, region) for name, region in parsed]
        of_structures = check_structures(structures) if structures else {}
        further += [(f"structure_{name}", Region.parse(classes)) for name, classes in of_structures.items()]
        if len(dict(further)) < len(further):
            raise InputError(f"regions must have each region once, got {', '.join(name for name, _ in further)}.")
        self.regions = {
            name: CalibrationMetric(region=region, sigmoid=sigmoid).view(self, i)
            for i, (name, region) in enumerate(further, start=1)
        }
        self.measured = [self.region, *(region for _, region in further)]

    def view(self, source: RegionMetric, position: int) -> CalibrationMetric:
        for part in (self.cece, self.nll, self.brier):
            part.view(source, position)
        super().view(source, position)
        return self

    def aggregate_resampled(self, reduction: str = "mean") -> torch.Tensor:
        """Reduce, as `aggregate` does, the mean ECE of each case over labels drawn from its probabilities.

        Unlike `aggregate_if_true`, it includes what chance adds to the error of few voxels. NaN unless the region is a
        structure and `draws` is not 0.
        """
        values, (errors,) = self.case_values(), self.found("resampled") or [torch.tensor(torch.nan)]
        return self.reduce(torch.where(values.isnan(), torch.nan, errors.double()), reduction)

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        if self.temperature is not None:
            self.options["temperature"] = float(self.temperature)
        return super().measure(y_pred, y)
