"""A case, and the table of what an evaluation measures of it. Columns of `cases.csv`, entries of
`summary.json` and headings follow the table.

A new measure is one entry of `MEASURES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import NamedTuple

import torch

from calib_components.metrics.region_measures import (
    CLASSWISE,
    IF_TRUE,
    TOP_LABEL,
    RegionMeasures,
    RegionSums,
)
from calib_components.metrics.regions import Region
from calib_components.metrics.segmentation import dice, hausdorff_distance_95, structure_masks
from calib_components.metrics.volumes import StructureMeasures, StructureSums
from calib_components.metrics.voxels import check_tensors, read_voxels
from calib_components.quality.estimates import (
    ESTIMATES,
    QualityColumn,
    StructureEstimate,
    StructureScan,
)
from calib_components.quality.reference import Reference

PAPER_REGION = "foreground"  # columns without a region in their names, such as `ece`, are of it
MEASURED = {  # what is measured in each region
    PAPER_REGION: (TOP_LABEL, CLASSWISE, "if_true"),
    "all": (TOP_LABEL, CLASSWISE, "nll"),
    "predicted": (TOP_LABEL, "nll"),
    "near": ("nll",),
}

Values = Mapping[str, float]  # by region or structure; of the whole case by ""
# From masks of prediction and label, `(1, structures, *S)`, to values `(1, structures)`
MaskFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(eq=False)
class Case:
    """A case to measure. What several measures need is computed once.

    Args:
        label: Class index, `(1, *S)`; for sigmoids 0 or 1, `(N, *S)`.
        structures: Class indices by name, such as `{"heart": [1, 2]}`; for sigmoids, the channel of
            each.
        probabilities: `(N, *S)`; None for a label map.
        prediction: Predicted class index, `(*S)`; default: the most probable class.
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

    def __post_init__(self) -> None:
        if self.prediction is None and self.probabilities is not None and not self.sigmoid:
            self.prediction = self.probabilities.argmax(0)

    def labels(self) -> list[torch.Tensor]:
        """Return the label of each rater."""
        return [self.label]

    def of_masks(self, function: MaskFunction) -> Values:
        """Return the values of a function of the masks of prediction and label, by structure."""
        return self.by_structure(function(*self.masks))

    def by_structure(self, values: torch.Tensor) -> Values:
        """Return values `(1, structures)` by the name of the structure."""
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
            true = structure_masks(self.label.where(self.counted, 0), classes)
        return (predicted & self.counted)[None], (true & self.counted)[None]

    @property
    def region_measures(self) -> dict[str, RegionMeasures]:
        """Bins and scores of each region, by name; distances are in mm where the spacing is
        known.
        """
        return self._measures[0]

    @property
    def structure_measures(self) -> StructureMeasures:
        """Volumes, expected DSC, confidence and accuracy of the structures."""
        return self._measures[1]

    @cached_property
    def _measures(self) -> tuple[dict[str, RegionMeasures], StructureMeasures]:
        """Measures of regions and of structures, from one pass over the voxels."""
        assert self.probabilities is not None
        y_pred, y = check_tensors(self.probabilities[None], self.label[None], self.sigmoid)
        spacing = None if self.spacing is None else tuple(self.spacing)
        chosen = {
            Region(name, spacing=spacing if name == "near" else None): kinds
            for name, kinds in MEASURED.items()
        }
        regions = RegionSums(
            chosen, y_pred, sigmoid=self.sigmoid, lowest=self.lowest, highest=self.highest
        )
        structures = StructureSums(self.structures, y_pred, self.sigmoid, self.voxel_volume)
        for voxels in read_voxels(y_pred, y, sigmoid=self.sigmoid, ignore_index=self.ignore_index):
            regions.add(voxels)
            structures.add(voxels)
        found = regions.measures()
        by_name = {region.kind: found[region] for region in chosen}
        return by_name, structures.measures()

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
        function: Gives the values of a case by region or structure.
        better: "lower", "higher", or "" if neither is.
        regions: The regions that it has a column of; without any, it has one of each structure.
        bins: Kind of bins that it is the error of; those of all cases together have an error, too.
        masks: Whether a label map has it.
        digits: Number of decimals in reports.
        in_report: Whether the table of means of reports shows it.
    """

    name: str
    title: str
    function: Callable[[Case], Values]
    better: str = ""
    regions: tuple[str, ...] = ()
    bins: str = ""
    masks: bool = False
    digits: int = 3
    in_report: bool = True

    def column(self, place: str) -> str:
        """Return the name of its column of a region or structure."""
        if not place or (self.regions and place == PAPER_REGION):
            return self.name
        return f"{self.name}_{place}"


class Column(NamedTuple):
    """What a column is of: a measure, and a region or structure; "" for a mean over structures."""

    measure: Measure
    place: str


def _error(kind: str, case: Case) -> Values:
    """Errors of a kind of bins, of the regions that have them; NaN where there is no voxel."""
    values = {}
    for region, measured in case.region_measures.items():
        if kind in measured.bins:
            error = measured.bins[kind].expected_error()
            values[region] = error.where(measured.count > 0, math.nan).item()
    return values


def _nll(case: Case) -> Values:
    measured = case.region_measures.items()
    return {name: each.scores["nll"].item() for name, each in measured if "nll" in each.scores}


def _of_structures(field: str, case: Case) -> Values:
    return case.by_structure(getattr(case.structure_measures, field))


def _estimate(column: QualityColumn, case: Case) -> Values:
    values = {name: column.function(scan) for name, scan in case.structure_scans.items()}
    if column.optional and all(map(math.isnan, values.values())):
        return {}
    return values


def _hd95(case: Case) -> Values:
    return case.of_masks(partial(hausdorff_distance_95, spacing=case.spacing))


MEASURES = (
    Measure("dsc", "DSC", lambda case: case.of_masks(dice), "higher", masks=True),
    Measure("hd95", "HD95", _hd95, "lower", masks=True, digits=2),
    Measure(
        "ece",
        "ECE",
        partial(_error, TOP_LABEL),
        "lower",
        regions=(PAPER_REGION, "all", "predicted"),
        bins=TOP_LABEL,
    ),
    Measure(
        "cece",
        "CECE",
        partial(_error, CLASSWISE),
        "lower",
        regions=(PAPER_REGION,),
        bins=CLASSWISE,
    ),
    Measure("nll", "NLL", _nll, "lower", regions=("all", "near", "predicted")),
    Measure(
        "ece_if_true",
        "ECE if true",
        partial(_error, TOP_LABEL + IF_TRUE),
        regions=(PAPER_REGION,),
        bins=TOP_LABEL + IF_TRUE,
        in_report=False,
    ),
    Measure(
        "cece_if_true",
        "CECE if true",
        partial(_error, CLASSWISE + IF_TRUE),
        regions=(PAPER_REGION,),
        bins=CLASSWISE + IF_TRUE,
        in_report=False,
    ),
    *(
        Measure(name, title, partial(_of_structures, field), in_report=False)
        for name, title, field in (
            ("true_volume", "true volume", "true"),
            ("segmented_volume", "segmented volume", "segmented"),
            ("expected_volume", "expected volume", "expected"),
            ("confidence", "confidence", "confidence"),
            ("accuracy", "accuracy", "accuracy"),
        )
    ),
    *(
        Measure(each.name, each.title, partial(_estimate, each), each.better, in_report=False)
        for each in ESTIMATES
        if each.better
    ),
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
        if measure.masks or case.probabilities is not None:
            values = measure.function(case)
            places = measure.regions or [*values]
            row |= {measure.column(place): values[place] for place in places}
    return row
