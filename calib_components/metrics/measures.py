"""The table of measures of an evaluation. Columns of `cases.csv`, entries of `summary.json` and
headings follow it.

A new measure is one entry of `MEASURES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch

from calib_components.metrics.bins import CalibrationBins, smooth_calibration_error
from calib_components.metrics.measuring import measure_regions
from calib_components.metrics.regions import REGIONS, Region
from calib_components.metrics.segmentation import dice, hausdorff_distance_95, structure_masks
from calib_components.metrics.selective import RiskCoverage, risk_coverage
from calib_components.metrics.volumes import StructureMeasures, measure_structures
from calib_components.quality.estimates import (
    ESTIMATES,
    QualityEstimate,
    StructureEstimate,
    StructureScan,
)
from calib_components.quality.reference import Reference

PAPER_REGION = "foreground"  # columns without a region in their names, such as `ece`, are of it
SMOOTH_REGIONS = (PAPER_REGION, "all", "predicted")  # of the smooth ECE
SMOOTH_BINS = 1920
IF_TRUE = "_if_true"  # follows the region in the name of a column

Values = Mapping[str, float]  # by region or structure; of the whole case by ""


@dataclass(eq=False)
class Case:
    """A case to measure. What several measures need is computed once.

    Args:
        label: Class index, `(1, *S)`; for sigmoids 0 or 1, `(N, *S)`.
        structures: Class indices by name, such as `{"heart": [1, 2]}`; for sigmoids, the channel of
            each.
        probabilities: `(N, *S)`; None for a label map.
        prediction: Predicted class index, `(*S)`; not needed for sigmoids.
        sigmoid: Whether each channel is a binary problem of its own.
        ignore_index: Value of the label of voxels to leave out.
        temperature: By which the logits were divided, see `measure_regions`.
        spacing: Size of a voxel along each axis, for HD95; None measures in voxels.
        voxel_volume: Volume of a voxel.
        lowest: Takes the place of lower probabilities in the NLL.
        highest: Takes the place of higher probabilities of sigmoids in the NLL.
        pairwise_dsc: Of several networks, the mean DSC over their pairs, by structure.
    """

    label: torch.Tensor
    structures: Mapping[str, Sequence[int]]
    probabilities: torch.Tensor | None = None
    prediction: torch.Tensor | None = None
    sigmoid: bool = False
    ignore_index: int | None = None
    temperature: float | None = None
    spacing: Sequence[float] | None = None
    voxel_volume: float = 1.0
    lowest: float = 0.0
    highest: float = 1.0
    pairwise_dsc: Mapping[str, float] = field(default_factory=dict)

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a function of probabilities `(1, N, *S)` and label."""
        assert self.probabilities is not None
        batch = {"y_pred": self.probabilities[None], "y": self.label[None]}
        return function(
            *arguments, **batch, ignore_index=self.ignore_index, sigmoid=self.sigmoid, **options
        )

    def labels(self) -> list[torch.Tensor]:
        """Return the label of each rater."""
        return [self.label]

    def measure_masks(self, function: Callable[[Case], Values]) -> Values:
        """Return the values of a function of its masks."""
        return function(self)

    def by_structure(self, values: torch.Tensor) -> Values:
        """Values `(1, structures)` by the name of the structure."""
        return dict(zip(self.structures, values[0].tolist(), strict=True))

    @property
    def counted(self) -> torch.Tensor:
        """Mask of the voxels that are ignored in no channel, `(*S)`."""
        if self.ignore_index is None:
            return torch.ones_like(self.label[0], dtype=torch.bool)
        return (self.label != self.ignore_index).all(0)

    @cached_property
    def masks(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks of the structures in the prediction and in the label, `(1, structures, *S)`."""
        classes = [*self.structures.values()]
        if self.sigmoid and self.probabilities is not None:
            channels = [channel for channel, *_ in classes]
            predicted, true = self.probabilities[channels] > 0.5, self.label[channels] == 1
        else:
            assert self.prediction is not None
            predicted = structure_masks(self.prediction[None], classes)
            true = structure_masks(self.label, classes)
        return (predicted & self.counted)[None], (true & self.counted)[None]

    @cached_property
    def regions(self) -> dict[str, Region]:
        """`REGIONS` and the structures, by name.

        Structures are no regions of sigmoids, whose labels are 0 and 1.
        """
        spacing = None if self.spacing is None else tuple(self.spacing)
        regions = {
            name: Region(name, spacing=spacing if kind.in_mm else None)
            for name, kind in REGIONS.items()
        }
        if self.sigmoid:
            return regions
        structures = {
            f"structure_{name}": Region.parse(list(classes))
            for name, classes in self.structures.items()
        }
        return regions | structures

    @cached_property
    def measured(self) -> dict[str, dict[str, Any]]:
        """Bins and scores of each region, see `Measured`, by name."""
        measured = self.call(
            measure_regions,
            regions=[*self.regions.values()],
            measures=["top_label", "classwise", "if_true", "nll", "brier"],
            temperature=self.temperature,
            lowest=self.lowest,
            highest=self.highest,
        )
        return {
            name: {**each.bins, **each.scores}
            for name, each in zip(self.regions, measured, strict=True)
        }

    @cached_property
    def smooth_bins(self) -> dict[str, CalibrationBins]:
        """Fine bins of the regions that have a smooth ECE."""
        measured = self.call(
            measure_regions,
            regions=[self.regions[name] for name in SMOOTH_REGIONS],
            measures=["top_label"],
            num_bins=SMOOTH_BINS,
        )
        return {
            name: each.bins["top_label"]
            for name, each in zip(SMOOTH_REGIONS, measured, strict=True)
        }

    @cached_property
    def structure_measures(self) -> StructureMeasures:
        """Volumes, expected DSC and counts above thresholds of the structures."""
        return self.call(
            measure_structures, structures=self.structures, voxel_volume=self.voxel_volume
        )

    @cached_property
    def structure_scans(self) -> dict[str, StructureScan]:
        """What estimates of quality without labels are functions of, by structure."""
        sums = self.structure_measures.sums
        unknown = Reference.from_tensor(torch.empty(0), [*self.structures])
        scans = {}
        for number, name in enumerate(self.structures):
            estimate = StructureEstimate({term: each[0, number] for term, each in sums.items()})
            agreement = self.pairwise_dsc.get(name, math.nan)
            scans[name] = StructureScan(name, estimate, unknown, pairwise_dsc=agreement)
        return scans

    @cached_property
    def risk(self) -> RiskCoverage:
        """Risk-coverage curve over all voxels."""
        return self.call(risk_coverage)


@dataclass(frozen=True)
class Measure:
    """An entry of the table of measures.

    Attributes:
        name: Name of its column, without a region or structure.
        title: Heading of its column in tables.
        better: "lower", "higher", or "" if neither is.
        unit: Entry of `summary.json` that has its unit, "unit" or "volume_unit"; "" without one.
        scope: "region", "structure" or "case": what a column is of.
        function: Gives the values of a case by region or structure.
        bins: Kind of bins that it is the error of, or score; bins of all cases together have an
            error, too.
        masks: Whether a label map has it.
        digits: Number of decimals in reports.
        in_report: Whether the tables of reports show it.
        report_regions: Regions in which they show it; none are all that reports show.
    """

    name: str
    title: str
    better: str
    unit: str
    scope: str
    function: Callable[[Case], Values]
    bins: str = ""
    masks: bool = False
    digits: int = 3
    in_report: bool = True
    report_regions: tuple[str, ...] = ()

    def column(self, place: str) -> str:
        """Return the name of its column of a region or structure."""
        if not place or (self.scope, place) == ("region", PAPER_REGION):
            return self.name
        if self.name.endswith(IF_TRUE):
            return f"{self.name.removesuffix(IF_TRUE)}_{place}{IF_TRUE}"
        return f"{self.name}_{place}"


class Column(NamedTuple):
    """What a column is of: a measure, and a region or structure; "" for a case, and for a mean over
    structures.
    """

    measure: Measure
    place: str


def _region_values(kind: str, case: Case) -> Values:
    """Errors of bins, or scores, of the regions that have them; NaN where there is no voxel."""
    values = {}
    for region, measured in case.measured.items():
        value = measured.get(kind)
        if isinstance(value, CalibrationBins):
            value = value.expected_error()
        if value is not None:
            is_empty = not measured["top_label"].count.any()
            values[region] = math.nan if is_empty else value.item()
    return values


def _smooth_ece(case: Case) -> Values:
    return {name: smooth_calibration_error(bins).item() for name, bins in case.smooth_bins.items()}


def _structure_values(field: str, case: Case) -> Values:
    return case.by_structure(getattr(case.structure_measures, field))


def _estimate_values(estimate: QualityEstimate, case: Case) -> Values:
    values = {name: estimate.function(scan) for name, scan in case.structure_scans.items()}
    if estimate.optional and all(map(math.isnan, values.values())):
        return {}
    return values


def _of_region(name: str, title: str, kind: str, better: str = "lower", **options: Any) -> Measure:
    """Return the measure that is the error of a kind of bins, or a score."""
    function = partial(_region_values, kind)
    return Measure(name, title, better, "", "region", function, bins=kind, **options)


def _volume(name: str, title: str, field: str) -> Measure:
    function = partial(_structure_values, field)
    return Measure(name, title, "", "volume_unit", "structure", function, in_report=False)


def _estimate(entry: QualityEstimate) -> Measure:
    function = partial(_estimate_values, entry)
    return Measure(
        entry.name, entry.title, entry.better, "", "structure", function, in_report=False
    )


MEASURES = (
    Measure(
        "dsc",
        "DSC",
        "higher",
        "",
        "structure",
        lambda case: case.by_structure(dice(*case.masks)),
        masks=True,
    ),
    Measure(
        "hd95",
        "HD95",
        "lower",
        "unit",
        "structure",
        lambda case: case.by_structure(hausdorff_distance_95(*case.masks, case.spacing)),
        masks=True,
        digits=2,
    ),
    _of_region("ece", "ECE", "top_label"),
    _of_region("cece", "CECE", "classwise", report_regions=(PAPER_REGION,)),
    _of_region("nll", "NLL", "nll", report_regions=("all", "near", "predicted")),
    _of_region("brier", "Brier", "brier", in_report=False),
    _of_region("ece_if_true", "ECE if true", "top_label_if_true", "", in_report=False),
    _of_region("cece_if_true", "CECE if true", "classwise_if_true", "", in_report=False),
    Measure(
        "smooth_ece",
        "smooth ECE",
        "lower",
        "",
        "region",
        _smooth_ece,
        in_report=False,
    ),
    _volume("true_volume", "true volume", "true"),
    _volume("segmented_volume", "segmented volume", "segmented"),
    _volume("expected_volume", "expected volume", "expected"),
    _volume("certain_volume", "volume with p > 0.95", "low"),
    _volume("possible_volume", "volume with p > 0.05", "high"),
    *(_estimate(estimate) for estimate in ESTIMATES if estimate.better),
    Measure(
        "aurc", "AURC", "lower", "", "case", lambda case: {"": case.risk.aurc.item()}, digits=5
    ),
    Measure(
        "error_share_5",
        "errors in 5 %",
        "higher",
        "",
        "case",
        lambda case: {"": case.risk.error_share.item()},
        in_report=False,
    ),
)


def columns(structures: Sequence[str]) -> Iterator[tuple[str, Column]]:
    """Give the name of every column that an evaluation of these structures can have, in order, and
    what it is of.
    """
    places = {
        "region": [*REGIONS, *(f"structure_{name}" for name in structures)],
        "structure": structures,
        "case": [""],
    }
    for measure in MEASURES:
        for place in places[measure.scope]:
            yield measure.column(place), Column(measure, place)


def report_columns() -> list[str]:
    """Return the columns, and means over structures, that the tables of a report show, in order."""
    shown = []
    regions = [name for name, kind in REGIONS.items() if kind.in_report]
    for measure in MEASURES:
        if measure.in_report and measure.scope == "region":
            shown += [measure.column(region) for region in measure.report_regions or regions]
        elif measure.in_report:
            shown.append(measure.name)
    return shown


def find_column(name: str, structures: Sequence[str]) -> Column | None:
    """Return what a column is of, or a mean over structures, such as "dsc"; None if it is of no
    measure.
    """
    means = {measure.name: Column(measure, "") for measure in MEASURES}
    return {**means, **dict(columns(structures))}.get(name)


def measure_case(case: Case) -> dict[str, float]:
    """Return the value of each column of a case, NaN where it is not defined; of a label map, those
    of its masks.
    """
    row: dict[str, float] = {}
    for measure in MEASURES:
        values: Values = {}
        if measure.masks:
            values = case.measure_masks(measure.function)
        elif case.probabilities is not None:
            values = measure.function(case)
        row |= {measure.column(place): value for place, value in values.items()}
    return row
