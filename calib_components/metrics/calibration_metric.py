"""ECE, CECE, NLL and Brier score in any number of regions, from one pass over the voxels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from calib_components.arguments import check_count, check_number
from calib_components.errors import InputError
from calib_components.metrics.calibration import CECEMetric, ECEMetric
from calib_components.metrics.one_pass import measure_regions
from calib_components.metrics.regions import Region, choose_region
from calib_components.metrics.scoring_rules import BrierMetric, NLLMetric
from calib_components.metrics.structures import check_structures
from calib_components.metrics.voxels import check_temperature

__all__ = ["CalibrationMetric", "further_regions"]

OF_CHANNELS = "whose labels are 0 and 1"


class CalibrationMetric(ECEMetric):
    """ECE, CECE, NLL and Brier score from one pass over the voxels, in one region or several.

    The metric itself is an `ECEMetric` of its region: `aggregate()` is the ECE and `bins` are the top-label bins. Its
    attributes `cece`, `nll` and `brier` are metrics that are updated and reset with it, such that `cece.aggregate()` is
    the CECE. `regions` holds one such metric for each further region. Across several processes, `aggregate()` gathers
    the cases of all of them.

    `aggregate_if_true()` is the value that the error would have if the probabilities were true, see
    `calib_components.metrics.one_pass`.

    Through `monai.handlers.IgniteMetricHandler`, the ECE appears under the name of the handler; read the others from
    the attributes after the epoch.

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
        regions: Further regions.
        structures: Class indices by name, such as `{"heart": [1, 2]}`; each is a further region, "structure_heart".
            Not for sigmoids, where 0 and 1 are labels of every channel.
        temperature: Number or tensor of one element by which the logits of `y_pred` were divided, read at every call;
            None is 1. The region "plausible" is decided without it, so that it has the same voxels at any temperature.
        draws: How often labels are drawn from the probabilities, for `aggregate_resampled` of structures.
        lowest: Takes the place of lower probabilities in the NLL, such as half a step of probabilities that were
            rounded to 8 bits, in which a 0 need not have been one.
        highest: Takes the place of higher probabilities of sigmoids in the NLL, likewise.

    Raises:
        TypeError: An option is not one of these.
        ValueError: An option has an unsuitable value. Calls raise the errors of `calibration_bins`.

    Attributes:
        cece: The classwise metric, a `CECEMetric`.
        nll: An `NLLMetric`.
        brier: A `BrierMetric`.
        regions: A `CalibrationMetric` for each further region, by its name as given.

    Examples:
        >>> import torch
        >>> from calib_components.metrics import CalibrationMetric
        >>> y_pred = torch.tensor([[[0.2, 0.4], [0.7, 0.6], [0.1, 0.0]]])  # one case, three classes, two voxels
        >>> y = torch.tensor([[[1, 0]]])
        >>> metric = CalibrationMetric(regions=["all"])
        >>> _ = metric(y_pred, y)
        >>> metric.aggregate()  # of the first voxel, |0.7 - 1|
        tensor(0.3000, dtype=torch.float64)
        >>> metric.aggregate_if_true()  # weights 0.8 and 0.6: (0.8 * |0.7 - 0.7 / 0.8| + 0.6 * |0.6 - 0.6 / 0.6|) / 1.4
        tensor(0.2714, dtype=torch.float64)
        >>> metric.regions["all"].aggregate(), metric.regions["all"].cece.aggregate()
        (tensor(0.4500, dtype=torch.float64), tensor(0.3000, dtype=torch.float64))
    """

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
        region = choose_region(region, foreground_only)
        self.cece = CECEMetric(num_bins, None, ignore_index, region, sigmoid)
        self.nll = NLLMetric(None, ignore_index, region, sigmoid)
        self.brier = BrierMetric(None, ignore_index, region, sigmoid)
        check_temperature(temperature)
        check_count("draws", draws, 0)
        check_number("lowest", lowest, 0, 1)
        check_number("highest", highest, 0, 1)
        if structures is not None and sigmoid:
            raise InputError(f"structures: expected None for sigmoids, {OF_CHANNELS}, got {structures!r}")
        self.has_structures = structures is not None
        self.temperature = temperature
        self.draws = draws
        self.lowest = lowest
        self.highest = highest
        self.regions = {
            name: CalibrationMetric(
                num_bins,
                None,
                ignore_index,
                further,
                sigmoid,
                temperature=temperature,
                draws=draws,
                lowest=lowest,
                highest=highest,
            )
            for name, further in further_regions(regions, structures).items()
        }
        super().__init__(num_bins, None, ignore_index, region, sigmoid)

    def aggregate_resampled(self, reduction: str = "mean") -> torch.Tensor:
        """Reduce the mean ECE of each case over labels drawn from its probabilities.

        Unlike `aggregate_if_true`, it includes what chance adds to the error of few voxels. NaN unless the region is a
        structure and `draws` is not 0.

        Args:
            reduction: As in `aggregate`.

        Raises:
            ValueError: No case has been added, or the reduction is unknown.
        """
        if self.stores_resampled:
            errors = self.gathered()[-1]
            return self.reduce(errors.where(~self.case_values().isnan(), torch.nan), reduction)
        return self.reduce(self.case_values() * torch.nan, reduction)

    @property
    def stores_resampled(self) -> bool:
        """Whether errors of drawn labels are stored, which only structures have."""
        return self.draws > 0 and self.region.kind == "structure"

    @property
    def parts(self) -> list[ECEMetric | CECEMetric | NLLMetric | BrierMetric]:
        """All metrics that one pass fills: those of the region of this one, then those of further regions."""
        further = [part for metric in self.regions.values() for part in metric.parts]
        return [self, self.cece, self.nll, self.brier, *further]

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        if self.has_structures and y_pred.shape[1] == 1:
            raise InputError(f"structures: expected None for one channel, {OF_CHANNELS}, got some")
        regions = [part.region for part in self.parts]
        measures = ["top_label", "classwise", "if_true", "nll", "brier"]
        temperature = None if self.temperature is None else float(self.temperature)
        results = measure_regions(
            y_pred,
            y,
            regions,
            measures,
            self.num_bins,
            self.ignore_index,
            self.sigmoid,
            temperature,
            self.draws,
            self.lowest,
            self.highest,
        )
        return [value for part, found in zip(self.parts, results, strict=True) for value in part.stored(found)]

    def stored(self, results: Mapping[str, list[torch.Tensor]]) -> list[torch.Tensor]:
        return [*super().stored(results), *results.get("resampled", [])]

    @property
    def num_stored(self) -> int:
        return super().num_stored + self.stores_resampled


def further_regions(regions: Sequence[Any], structures: Mapping[str, Sequence[int]] | None) -> dict[str, Region]:
    """Regions by name."""
    if isinstance(regions, str) or not isinstance(regions, Sequence):
        raise InputError(f"regions: expected a list of regions, got {regions!r}")
    parsed = [(value if isinstance(value, str) else None, Region.parse(value)) for value in regions]
    named = [(name or region.name, region) for name, region in parsed]
    of_structures = {} if structures in (None, {}) else check_structures(structures)
    named += [(f"structure_{name}", Region.parse(classes)) for name, classes in of_structures.items()]
    names = [name for name, _ in named]
    if len(set(names)) < len(names):
        raise InputError(f"regions: expected each region once, got {', '.join(names)}")
    return dict(named)
