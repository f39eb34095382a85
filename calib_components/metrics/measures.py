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

from calib_components.metrics.measuring import Measured, measure_regions
from calib_components.metrics.regions import Region
from calib_components.metrics.segmentation import dice, hausdorff_distance_95, structure_masks
from calib_components.metrics.volumes import StructureMeasures, measure_structures
from calib_components.quality.estimates import (
    ESTIMATES,
    QualityEstimate,
    StructureEstimate,
    StructureScan,
)
from calib_components.quality.reference import Reference

PAPER_REGION = "foreground"  # columns without a region in their names, such as `ece`, are of it
IF_TRUE = "_if_true"  # follows the region in the name of a column
MEASURED = {  # what is measured in each region
    PAPER_REGION: ("top_label", "classwise", "if_true"),
    "all": ("top_label", "classwise", "nll"),
    "predicted": ("top_label", "nll"),
    "near": ("nll",),
}

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
    def measured(self) -> dict[str, Measured]:
        """Bins and scores of each region, by name; distances are in mm where the spacing is
        known.
        """
        spacing = None if self.spacing is None else tuple(self.spacing)
        regions = {
            name: Region(name, spacing=spacing if name == "near" else None) for name in MEASURED
        }
        measured = self.call(
            measure_regions,
            measures={regions[name]: kinds for name, kinds in MEASURED.items()},
            lowest=self.lowest,
            highest=self.highest,
        )
        return {name: measured[region] for name, region in regions.items()}

    @cached_property
    def structure_measures(self) -> StructureMeasures:
        """Volumes, expected DSC, confidence and accuracy of the structures."""
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


@dataclass(frozen=True)
class Measure:
    """An entry of the table of measures.

    Attributes:
        name: Name of its column, without a region or structure.
        title: Heading of its column in tables.
        better: "lower", "higher", or "" if neither is.
        unit: Entry of `summary.json` that has its unit, "unit" or "volume_unit"; "" without one.
        function: Gives the values of a case by region or structure.
        regions: The regions that it has a column of; without any, it has one of each structure.
        bins: Kind of bins that it is the error of, or score; bins of all cases together have an
            error, too.
        masks: Whether a label map has it.
        digits: Number of decimals in reports.
        in_report: Whether the table of means of reports shows it.
    """

    name: str
    title: str
    better: str
    unit: str
    function: Callable[[Case], Values]
    regions: tuple[str, ...] = ()
    bins: str = ""
    masks: bool = False
    digits: int = 3
    in_report: bool = True

    def column(self, place: str) -> str:
        """Return the name of its column of a region or structure."""
        if not place or (self.regions and place == PAPER_REGION):
            return self.name
        if self.name.endswith(IF_TRUE):
            return f"{self.name.removesuffix(IF_TRUE)}_{place}{IF_TRUE}"
        return f"{self.name}_{place}"


class Column(NamedTuple):
    """What a column is of: a measure, and a region or structure; "" for a mean over structures."""

    measure: Measure
    place: str


def _region_values(kind: str, case: Case) -> Values:
    """Errors of bins, or scores, of the regions that have them; NaN where there is no voxel."""
    values = {}
    for region, measured in case.measured.items():
        if kind in measured.bins:
            error = measured.bins[kind].expected_error()
            values[region] = error.where(measured.count > 0, math.nan).item()
        elif kind in measured.scores:
            values[region] = measured.scores[kind].item()
    return values


def _structure_values(field: str, case: Case) -> Values:
    return case.by_structure(getattr(case.structure_measures, field))


def _estimate_values(estimate: QualityEstimate, case: Case) -> Values:
    values = {name: estimate.function(scan) for name, scan in case.structure_scans.items()}
    if estimate.optional and all(map(math.isnan, values.values())):
        return {}
    return values


def _of_regions(
    name: str, title: str, kind: str, *regions: str, better: str = "lower", in_report: bool = True
) -> Measure:
    """Return the measure that is the error of a kind of bins, or a score."""
    function = partial(_region_values, kind)
    return Measure(name, title, better, "", function, regions, bins=kind, in_report=in_report)


def _of_structure(name: str, title: str, field: str, unit: str = "volume_unit") -> Measure:
    function = partial(_structure_values, field)
    return Measure(name, title, "", unit, function, in_report=False)


def _estimate(entry: QualityEstimate) -> Measure:
    function = partial(_estimate_values, entry)
    return Measure(entry.name, entry.title, entry.better, "", function, in_report=False)


MEASURES = (
    Measure(
        "dsc",
        "DSC",
        "higher",
        "",
        lambda case: case.by_structure(dice(*case.masks)),
        masks=True,
    ),
    Measure(
        "hd95",
        "HD95",
        "lower",
        "unit",
        lambda case: case.by_structure(hausdorff_distance_95(*case.masks, case.spacing)),
        masks=True,
        digits=2,
    ),
    _of_regions("ece", "ECE", "top_label", PAPER_REGION, "all", "predicted"),
    _of_regions("cece", "CECE", "classwise", PAPER_REGION),
    _of_regions("nll", "NLL", "nll", "all", "near", "predicted"),
    _of_regions(
        "ece_if_true", "ECE if true", "top_label_if_true", PAPER_REGION, better="", in_report=False
    ),
    _of_regions(
        "cece_if_true",
        "CECE if true",
        "classwise_if_true",
        PAPER_REGION,
        better="",
        in_report=False,
    ),
    _of_structure("true_volume", "true volume", "true"),
    _of_structure("segmented_volume", "segmented volume", "segmented"),
    _of_structure("expected_volume", "expected volume", "expected"),
    _of_structure("confidence", "confidence", "confidence", unit=""),
    _of_structure("accuracy", "accuracy", "accuracy", unit=""),
    *(_estimate(estimate) for estimate in ESTIMATES if estimate.better),
)


def columns(structures: Sequence[str]) -> Iterator[tuple[str, Column]]:
    """Give the name of every column that an evaluation of these structures can have, in order, and
    what it is of.
    """
    for measure in MEASURES:
        for place in measure.regions or structures:
            yield measure.column(place), Column(measure, place)


def report_columns() -> list[str]:
    """Return the columns, and means over structures, that the table of means of a report shows, in
    order.
    """
    return [
        measure.column(region)
        for measure in MEASURES
        if measure.in_report
        for region in measure.regions or [""]
    ]


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
        places = measure.regions or [*values]
        row |= {measure.column(place): values[place] for place in places if values}
    return row
