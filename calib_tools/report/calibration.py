"""Confidence and accuracy, of regions and structures, and whether a network is calibrated.

The answer is that of the interval of confidence minus accuracy, a mean over patients, and of a
margin. The ECE of a calibrated network is above 0 by chance, by an unknown amount: voxels depend on
each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import pandas as pd

from calib_components.metrics.intervals import Estimate
from calib_tools.report.data import Context, Results
from calib_tools.report.statistics import CalibrationGap, correct_gaps
from calib_workflows.pages.page import Section

REGIONS = {"predicted": "predicted foreground", "all": "all voxels"}
MARGIN = 0.02  # a network is calibrated within it
VERDICTS = {
    "calibrated": f"calibrated within {MARGIN}",
    "slight": f"calibrated within {MARGIN}, slightly {{kind}}",
    "shown": "{kind}",
    "undecided": "undecided",
}
ABOUT_SUMMARY = (
    "Means over {patients}; in brackets, 95 % intervals. DSC: overlap with the true segmentation,"
    " at best 1."
)
ABOUT_SURE = (
    " Sure: mean confidence where a structure is predicted. Right: how often it is right there. Too"
    " sure by: the difference in percentage points; 0 if the network is calibrated, below 0 if it"
    " is not sure enough."
)

SEGMENTATION = ("dsc", "hd95")
VOLUMES = ("true_volume", "segmented_volume_error", "expected_volume_error")
ABOUT = (
    "Means over the cases where a measure is defined. A missed structure, or one that is found"
    " where there is none, has DSC 0 and no HD95. HD95 is in {hd95}, volumes are in {volumes}."
)
ABOUT_EXPECTED = (
    " Expected volume: the sum of the probabilities. Confidence is the mean probability of the"
    " predicted class, accuracy the share of voxels where it is right, among those that are"
    f" predicted as a structure. Calibrated: the interval of the difference lies within {MARGIN};"
    " over- or underconfident: it leaves out 0. Those of structures are Holm-corrected. Ignore"
    " padded voxels (ignore_index): as easy background, they hide how confident a network is."
)
CALIBRATED = " {label} had been calibrated: {calibrator}, fitted to region {region}."


class Judgement(NamedTuple):
    """What the voxels of a region, or those predicted as a structure, say of a network.

    Attributes:
        gap: Confidence minus accuracy.
        confidence: Mean over patients.
        accuracy: Mean over patients.
        further_patients: About how many more patients reach the `target`, if it is undecided.
        pooled_ece: ECE of the voxels of all cases together.
    """

    gap: Estimate
    confidence: float = math.nan
    accuracy: float = math.nan
    further_patients: int = 0
    pooled_ece: float = 0.0

    @property
    def kind(self) -> str:
        """How the network is wrong, if it is."""
        return "overconfident" if self.gap.mean > 0 else "underconfident"

    @property
    def verdict(self) -> str:
        """A key of `VERDICTS`."""
        is_beside_0 = self.gap.low > 0 or self.gap.high < 0
        if self.gap.low > -MARGIN and self.gap.high < MARGIN:
            return "slight" if is_beside_0 else "calibrated"
        return "shown" if is_beside_0 else "undecided"

    @property
    def percent(self) -> list[float]:
        """The gap and the ends of its interval, in percentage points."""
        return [100 * value for value in self.gap[:3]]

    @property
    def target(self) -> str:
        """What more patients would make the interval do, if the mean and the spread stay."""
        is_small = abs(self.gap.mean) < MARGIN / 2
        return f"lie within {MARGIN}" if is_small else "exclude 0"

    @property
    def is_bent(self) -> bool:
        """Whether it is too confident at some confidences and not enough at others."""
        return self.verdict in ("calibrated", "slight") and self.pooled_ece > MARGIN

    @property
    def text(self) -> str:
        """The verdict in words."""
        return VERDICTS[self.verdict].format(kind=self.kind)


def judge_regions(results: Results, name: str) -> dict[str, Judgement]:
    """Return the judgement of each region that has a voxel: a network may predict no foreground.

    Without probabilities, there are none.
    """
    judgements: dict[str, Judgement] = {}
    if not results.has("ece_predicted"):
        return judgements
    for region in REGIONS:
        confidence, accuracy = results.confidence(name, region)
        gap = CalibrationGap(confidence, accuracy, results.patients)
        if gap.patients:
            judgements[region] = Judgement(
                gap.estimate(),
                gap.confidence,
                gap.accuracy,
                further_patients=gap.further_patients(MARGIN),
                pooled_ece=results.bins[name][region].pooled().expected_error().item(),
            )
    return judgements


def judge_structures(results: Results) -> dict[tuple[str, str], Judgement]:
    """Return the judgement of the voxels that are predicted as each structure, by name of the
    evaluation and structure, Holm-corrected over all of them; none without probabilities.
    """
    gaps = {}
    for name, structure in product(results.names, results.structures):
        columns = [f"confidence_{structure}", f"accuracy_{structure}"]
        if results.has(*columns):
            confidence, accuracy = (results.cases[name][column] for column in columns)
            gaps[name, structure] = CalibrationGap(confidence, accuracy, results.patients)
    return {key: Judgement(gap) for key, gap in correct_gaps(gaps).items()}


def summary_section(context: Context) -> Section:
    """Return how well each evaluation segments, how sure it is, and how often right."""
    results, rows = context.results, []
    for name in results.names:
        rows.append(results.record(name, "dsc"))
        judgement = judge_regions(results, name).get("predicted")
        if judgement is not None:
            rows += [{**results.keys(name), **row} for row in _in_percent(judgement)]
    text = ABOUT_SUMMARY.format(patients=results.count)
    if len(rows) > len(results.names):
        text += ABOUT_SURE + "".join(_calibrations(results))
    table = pd.DataFrame(rows)
    if len(results.names) == 1:
        table["label"] = results.count
    return Section("summary", "", text, table, folded=False)


def _calibrations(results: Results) -> Iterator[str]:
    """Yield what had been calibrated before."""
    for name, evaluation in results.evaluations.items():  # of a comparison, there are none
        label = results.labels[name] if len(results.names) > 1 else "It"
        if fit := evaluation.summary.get("calibration"):
            yield CALIBRATED.format(label=label, **fit)


def _in_percent(judgement: Judgement) -> list[dict[str, Any]]:
    """Return the rows of a judgement, in percent and percentage points."""
    mean, low, high = judgement.percent
    points = {"unit": "points", "signed": True}
    return [
        {"measure": "sure", "mean": 100 * judgement.confidence, "unit": "%"},
        {"measure": "right", "mean": 100 * judgement.accuracy, "unit": "%"},
        {"measure": "too sure by", "mean": mean, "low": low, "high": high, **points},
        {"measure": "calibrated?", "text": judgement.text, "bold": True},
    ]


def structures_section(context: Context) -> Section:
    """Return DSC, volumes, confidence and accuracy of each structure, and whether each of them,
    and each region, is calibrated.
    """
    results, measures = context.results, (*SEGMENTATION, *VOLUMES)
    units = dict.fromkeys(VOLUMES, results.volume_unit)
    rows = [
        results.record(name, f"{measure}_{structure}")
        | {"structure": structure, "measure": measure, "unit": units.get(measure)}
        for name, structure, measure in product(results.names, results.structures, measures)
        if results.has(f"{measure}_{structure}")
    ]
    judgements = judge_structures(results)
    for name in results.names:
        for region, judgement in judge_regions(results, name).items():
            judgements[name, REGIONS[region]] = judgement
    for (name, place), judgement in judgements.items():
        keys = {**results.keys(name), "structure": place}
        rows.append({**keys, "measure": "gap", **judgement.gap._asdict()})
        rows.append({**keys, "measure": "calibrated?", "text": judgement.text})
    text = ABOUT.format(hd95=results.unit, volumes=results.volume_unit)
    if judgements:
        text += ABOUT_EXPECTED
    lines = ["structure"] if len(results.names) == 1 else ["label", "structure"]
    return Section("structures", "Structures and regions", text, pd.DataFrame(rows), lines)
