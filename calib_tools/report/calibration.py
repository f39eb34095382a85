"""Confidence and accuracy, and whether a network is calibrated.

The answer is that of the interval of confidence minus accuracy, a mean over patients, and of a
margin. The ECE of a calibrated network is above 0 by chance, by an unknown amount: voxels depend on
each other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from calib_tools.report.data import Context, Results
from calib_tools.report.page import Section
from calib_tools.report.statistics import CalibrationGap, Estimate
from calib_tools.report.tables import Cell, interval, number

REGIONS = {"predicted": "predicted foreground", "all": "all voxels"}
MARGIN = 0.02  # a network is calibrated within it
VERDICTS = {
    "calibrated": f"calibrated within {MARGIN}",
    "slight": f"calibrated within {MARGIN}, slightly {{kind}}",
    "shown": "{kind}",
    "undecided": "undecided",
}
ABOUT_SUMMARY = (
    "Means over {patients}; in brackets, 95 % intervals. Dice: overlap with the true segmentation,"
    " at best 1."
)
ABOUT_SURE = (
    " Sure: mean confidence where a structure is predicted. Right: how often it is right there. Too"
    " sure by: the difference in percentage points; 0 if the network is calibrated, below 0 if it"
    " is not sure enough."
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
    lines = []
    for name in results.names:
        dsc, judgement = results.mean(name, "dsc"), judge_regions(results, name).get("predicted")
        line = {"Dice": Cell(number(dsc.mean, "dsc"), interval(dsc, "dsc"))}
        lines.append(line if judgement is None else line | _in_percent(judgement))
    labels = [*results.labels.values()] if len(lines) > 1 else [results.count]
    table = pd.DataFrame(lines, pd.Index(labels, name="label")).fillna("")
    caption = ABOUT_SUMMARY.format(patients=results.count)
    if "sure" in table:
        caption += ABOUT_SURE
        known = results.evaluations  # of a comparison, there are none
        done = [
            known[name].summary.get("calibration") if name in known else None
            for name in results.names
        ]
        caption += "".join(
            CALIBRATED.format(label=label if len(lines) > 1 else "It", **fit)
            for label, fit in zip(labels, done, strict=True)
            if fit
        )
    return Section("summary", "", caption, table, folded=False)


def _in_percent(judgement: Judgement) -> dict[str, Cell]:
    """Return the cells of a judgement."""
    mean, low, high = (100 * value for value in judgement.gap[:3])
    gap = Estimate(mean, low, high)
    return {
        "sure": Cell(f"{100 * judgement.confidence:.1f}\u00a0%"),
        "right": Cell(f"{100 * judgement.accuracy:.1f}\u00a0%"),
        "too sure by": Cell(number(gap.mean, "points", True), interval(gap, "points", True)),
        "calibrated?": Cell(judgement.text, bold=True),
    }
