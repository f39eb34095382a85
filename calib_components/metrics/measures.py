"""The table of measures of an evaluation. Columns of `cases.csv`, entries of `summary.json` and
headings follow it.

A new measure is one entry of `MEASURES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch

from calib_components.metrics.bins import CalibrationBins, smooth_calibration_error
from calib_components.metrics.measuring import measure_regions
from calib_components.metrics.regions import REGIONS as KINDS
from calib_components.metrics.regions import Region
from calib_components.metrics.segmentation import dice, hausdorff_distance_95, structure_masks
from calib_components.metrics.selective import RiskCoverage, risk_coverage
from calib_components.metrics.volumes import StructureMeasures, measure_structures
from calib_components.quality.estimates import ScanEstimates, StructureEstimate

# A column without a region in its name, such as `ece`, is of the first one, that of the paper.
REGIONS = tuple(KINDS)
SMOOTH = REGIONS[:3]  # regions of the smooth ECE
DRAWS = 20  # sets of labels drawn from the probabilities, for structures: they may be small
NARROW = 1920  # bins of the smooth ECE
SUFFIXES = ("_if_true", "_resampled")  # which follow the region in the name of a column

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

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a function of probabilities `(1, N, *S)` and label."""
        assert self.probabilities is not None
        batch = {"y_pred": self.probabilities[None], "y": self.label[None]}
        return function(
            *arguments, **batch, ignore_index=self.ignore_index, sigmoid=self.sigmoid, **options
        )

    def by_structure(self, values: torch.Tensor) -> Values:
        """Values `(1, structures)` by the name of the structure."""
        return dict(zip(self.structures, values[0].tolist(), strict=True))

    @cached_property
    def masks(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks of the structures in the prediction and in the label, `(1, structures, *S)`."""
        classes = [*self.structures.values()]
        if self.sigmoid and self.probabilities is not None:
            channels = [channel for channel, *_ in classes]
            predicted, true = self.probabilities[channels] > 0.5, self.label[channels] == 1
        else:
            assert self.prediction is not None
            predicted, true = (
                structure_masks(of, classes) for of in (self.prediction[None], self.label)
            )
        kept = (self.label != (math.nan if self.ignore_index is None else self.ignore_index)).all(0)
        return (predicted & kept)[None], (true & kept)[None]

    @cached_property
    def regions(self) -> dict[str, Region]:
        """`REGIONS` and the structures, by name.

        Structures are no regions of sigmoids, whose labels are 0 and 1.
        """
        structures = (
            {}
            if self.sigmoid
            else {f"structure_{name}": list(of) for name, of in self.structures.items()}
        )
        return {
            name: Region.parse(of)
            for name, of in [*zip(REGIONS, REGIONS, strict=True), *structures.items()]
        }

    @cached_property
    def measured(self) -> dict[str, dict[str, Any]]:
        """Bins and scores of each region, see `Measured`, by name."""
        more = {
            "temperature": self.temperature,
            "draws": DRAWS,
            "lowest": self.lowest,
            "highest": self.highest,
        }
        kinds = ["top_label", "classwise", "if_true", "nll", "brier"]
        found = self.call(measure_regions, regions=[*self.regions.values()], measures=kinds, **more)
        return {
            name: {**of.bins, **of.scores} for name, of in zip(self.regions, found, strict=True)
        }

    @cached_property
    def structure_measures(self) -> StructureMeasures:
        """Volumes, expected DSC and counts above thresholds of the structures."""
        return self.call(
            measure_structures, structures=self.structures, voxel_volume=self.voxel_volume
        )

    @cached_property
    def estimates(self) -> dict[str, StructureEstimate]:
        """What the probabilities say of each structure."""
        assert self.probabilities is not None
        kept = (self.label != (math.nan if self.ignore_index is None else self.ignore_index)).all(0)
        scan = ScanEstimates(self.structures, self.sigmoid or len(self.probabilities) == 1)
        scan.update(self.probabilities[:, kept].unsqueeze(1))
        return scan.compute()

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
        bins: Kind of bins that it is the error of; those of all cases together have an error, too.
        masks: Whether a label map has it.
    """

    name: str
    title: str
    better: str
    unit: str
    scope: str
    function: Callable[[Case], Values]
    bins: str = ""
    masks: bool = False

    def column(self, place: str) -> str:
        """Return the name of its column of a region or structure."""
        if not place or (self.scope, place) == ("region", REGIONS[0]):
            return self.name
        suffix = next((suffix for suffix in SUFFIXES if self.name.endswith(suffix)), "")
        return f"{self.name.removesuffix(suffix)}_{place}{suffix}"


class Column(NamedTuple):
    """What a column is of: a measure, and a region or structure; "" for a case, and for a mean over
    structures.
    """

    measure: Measure
    place: str


def _region_values(kind: str, case: Case) -> Values:
    """Errors of bins, or scores, of the regions that have them; NaN where there is no voxel."""
    values = {}
    for region, found in case.measured.items():
        if (value := found.get(kind)) is not None:
            error = value.expected_error() if isinstance(value, CalibrationBins) else value
            values[region] = error.item() if found["top_label"].count.any() else math.nan
    return values


def _smooth_ece(case: Case) -> Values:
    regions = [case.regions[name] for name in SMOOTH]
    found = case.call(measure_regions, regions=regions, measures=["top_label"], num_bins=NARROW)
    return {
        name: smooth_calibration_error(of.bins["top_label"]).item()
        for name, of in zip(SMOOTH, found, strict=True)
    }


def _structure(field: str) -> Callable[[Case], Values]:
    return lambda case: case.by_structure(getattr(case.structure_measures, field))


def _bins(kind: str) -> dict[str, Any]:
    return {"function": partial(_region_values, kind), "bins": kind}


MEASURES = (
    Measure("dsc", "DSC", "higher", "", "structure", lambda case: case.by_structure(dice(*case.masks)), masks=True),
    Measure("hd95", "HD95", "lower", "unit", "structure",
            lambda case: case.by_structure(hausdorff_distance_95(*case.masks, case.spacing)), masks=True),
    Measure("ece", "ECE", "lower", "", "region", **_bins("top_label")),
    Measure("cece", "CECE", "lower", "", "region", **_bins("classwise")),
    Measure("nll", "NLL", "lower", "", "region", partial(_region_values, "nll")),
    Measure("brier", "Brier", "lower", "", "region", partial(_region_values, "brier")),
    Measure("ece_if_true", "ECE if true", "", "", "region", **_bins("top_label_if_true")),
    Measure("cece_if_true", "CECE if true", "", "", "region", **_bins("classwise_if_true")),
    Measure("ece_resampled", "ECE of drawn labels", "", "", "region", partial(_region_values, "resampled")),
    Measure("smooth_ece", "smooth ECE", "lower", "", "region", _smooth_ece),
    Measure("true_volume", "true volume", "", "volume_unit", "structure", _structure("true")),
    Measure("segmented_volume", "segmented volume", "", "volume_unit", "structure", _structure("segmented")),
    Measure("expected_volume", "expected volume", "", "volume_unit", "structure", _structure("expected")),
    Measure("volume_low", "lowest volume", "", "volume_unit", "structure", _structure("low")),
    Measure("volume_high", "highest volume", "", "volume_unit", "structure", _structure("high")),
    Measure("expected_dsc", "expected DSC", "higher", "", "structure", _structure("expected_dsc")),
    Measure("mean_entropy", "mean entropy", "lower", "", "structure",
            lambda case: {name: found.mean_entropy for name, found in case.estimates.items()}),
    Measure("aurc", "AURC", "lower", "", "case", lambda case: {"": case.risk.aurc.item()}),
    Measure("error_share_5", "errors in 5 %", "higher", "", "case", lambda case: {"": case.risk.error_share.item()}),
)  # fmt: skip


def columns(structures: Sequence[str]) -> Iterator[tuple[str, Column]]:
    """Give the name of every column that an evaluation of these structures can have, in order, and
    what it is of.
    """
    regions = [*REGIONS, *(f"structure_{name}" for name in structures)]
    for measure in MEASURES:
        for place in {"region": regions, "structure": structures, "case": [""]}[measure.scope]:
            yield measure.column(place), Column(measure, place)


def find_column(name: str, structures: Sequence[str]) -> Column | None:
    """Return what a column is of, or a mean over structures, such as "dsc"; None if it is of no
    measure.
    """
    return {
        **{measure.name: Column(measure, "") for measure in MEASURES},
        **dict(columns(structures)),
    }.get(name)


def measure_case(case: Case) -> dict[str, float]:
    """Return the value of each column of a case, NaN where it is not defined; of a label map, those
    of its masks.
    """
    measures = [measure for measure in MEASURES if measure.masks or case.probabilities is not None]
    return {
        measure.column(place): each
        for measure in measures
        for place, each in measure.function(case).items()
    }
