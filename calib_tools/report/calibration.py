"""Confidence and accuracy, of regions and structures, and whether a network is calibrated.

The answer is that of the interval of confidence minus accuracy, a mean over patients, and of a
margin. The ECE of a calibrated network is above 0 by chance, by an unknown amount: voxels depend on
each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from calib_tools.report.data import Context, Results
from calib_tools.report.statistics import CalibrationGap, Estimate, holm, holm_levels
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
        further_patients: About how many more patients would tell, if it is undecided.
        pooled_ece: ECE of the voxels of all cases together.
    """

    gap: Estimate
    confidence: float
    accuracy: float
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
    def is_bent(self) -> bool:
        """Whether it is too confident at some confidences and not enough at others."""
        return self.verdict in ("calibrated", "slight") and self.pooled_ece > MARGIN

    @property
    def text(self) -> str:
        """The verdict in words."""
        return VERDICTS[self.verdict].format(kind=self.kind)


def patient_means(means: ArrayLike, patients: pd.Series) -> pd.DataFrame:
    """Return mean confidence and accuracy of each patient, over the cases that have both.

    `means` are those of the cases, `(2, cases)`.
    """
    cases = pd.DataFrame(np.transpose(means), patients.index, ["confidence", "accuracy"])
    return cases.dropna().groupby(patients).mean()


def judge_regions(results: Results, name: str) -> dict[str, Judgement]:
    """Return the judgement of each region that has a voxel: a network may predict no foreground.

    Without probabilities, there are none.
    """
    judgements: dict[str, Judgement] = {}
    if not results.has("ece_predicted"):
        return judgements
    for region in REGIONS:
        table = patient_means(results.case_means(name, region), results.patients)
        if len(table):
            gap = CalibrationGap(table["confidence"], table["accuracy"])
            judgements[region] = Judgement(
                gap.estimate(),
                confidence=table["confidence"].mean(),
                accuracy=table["accuracy"].mean(),
                further_patients=gap.further_patients(MARGIN),
                pooled_ece=results.pooled_bins(name, region).expected_error().item(),
            )
    return judgements


def summary_section(context: Context) -> Section:
    """Return how well each evaluation segments, how sure it is, and how often right."""
    results = context.results
    records: list[dict[str, Any]] = []
    for name in results.names:
        label = results.labels[name] if len(results.names) > 1 else results.count
        line = {**results.keys(name), "label": label}
        records.append({**results.record(name, "dsc"), **line})
        judgement = judge_regions(results, name).get("predicted")
        if judgement is not None:
            records += [{**line, **cell} for cell in _in_percent(judgement)]
    text = ABOUT_SUMMARY.format(patients=results.count)
    if len(records) > len(results.names):
        text += ABOUT_SURE + "".join(_calibrations(results))
    return Section("summary", "", text, records, folded=False)


def _calibrations(results: Results) -> Iterator[str]:
    """Yield what had been calibrated before."""
    for name, evaluation in results.evaluations.items():  # of a comparison, there are none
        label = results.labels[name] if len(results.names) > 1 else "It"
        if fit := evaluation.summary.get("calibration"):
            yield CALIBRATED.format(label=label, **fit)


def _in_percent(judgement: Judgement) -> list[dict[str, Any]]:
    """Return the records of a judgement."""
    mean, low, high = (100 * value for value in judgement.gap[:3])
    points = {"unit": "points", "signed": True}
    shares = {"sure": 100 * judgement.confidence, "right": 100 * judgement.accuracy}
    return [
        *(
            {"measure": measure, "mean": share, "unit": "%", "text": f"{share:.1f}\u00a0%"}
            for measure, share in shares.items()
        ),
        {"measure": "too sure by", "mean": mean, "low": low, "high": high, **points},
        {"measure": "calibrated?", "text": judgement.text, "bold": True},
    ]


def structures_section(context: Context) -> Section:
    """Return DSC, volumes, confidence and accuracy of each structure, and whether each of them,
    and each region, is calibrated.
    """
    results = context.results
    records: list[dict[str, Any]] = []
    for name, structure in product(results.names, results.structures):
        for measure in (*SEGMENTATION, *VOLUMES):
            if results.has(f"{measure}_{structure}"):
                unit = {"unit": results.volume_unit} if measure in VOLUMES else {}
                record = results.record(name, f"{measure}_{structure}")
                records.append({**record, "structure": structure, "measure": measure, **unit})
    text = ABOUT.format(hd95=results.unit, volumes=results.volume_unit)
    judgements = judge_structures(results)
    for name in results.names:
        for region, judgement in judge_regions(results, name).items():
            judgements[name, REGIONS[region]] = judgement
    for (name, structure), judgement in judgements.items():
        keys = {**results.keys(name), "label": results.labels[name], "structure": structure}
        gap = {"measure": "gap", **judgement.gap._asdict(), "signed": True}
        records += [
            {**keys, **gap},
            {**keys, "measure": "calibrated?", "text": judgement.text},
        ]
    if judgements:
        text += ABOUT_EXPECTED
    lines = ["structure"] if len(results.names) == 1 else ["label", "structure"]
    return Section("structures", "Structures and regions", text, records, lines)


def judge_structures(results: Results) -> dict[tuple[str, str], Judgement]:
    """Return the judgement of the voxels that are predicted as each structure, by name of the
    evaluation and structure, Holm-corrected over all of them; none without probabilities.
    """
    if not results.has(*(f"confidence_{structure}" for structure in results.structures)):
        return {}
    means, gaps = {}, {}
    for name, structure in product(results.names, results.structures):
        values = [
            results.values(name, f"{each}_{structure}") for each in ("confidence", "accuracy")
        ]
        table = patient_means(values, results.patients)
        means[name, structure] = table.mean()
        gaps[name, structure] = CalibrationGap(table["confidence"], table["accuracy"])
    p_values = [gap.p_value for gap in gaps.values()]
    corrected = zip(gaps.items(), holm(p_values), holm_levels(p_values), strict=True)
    return {
        key: Judgement(gap.estimate(level)._replace(p_value=p_value), **means[key])
        for (key, gap), p_value, level in corrected
    }
