"""Confidence and accuracy of regions, and whether a network is calibrated.

Whether it is calibrated is a test over patients of confidence minus accuracy, which is 0 on average
if it is; without significance, "no miscalibration" is shown only where the interval contains 0 and
is close to it. The ECE of a calibrated network is above 0 by chance, by an unknown amount: voxels
depend on each other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from calib_components.tools.report.data import Context, Results
from calib_components.tools.report.page import Section
from calib_components.tools.report.statistics import MIN_PATIENTS, Estimate, calibration_gap, holm
from calib_components.tools.report.tables import SIGNIFICANT, Cell, tabulate

REGIONS = {"predicted": "predicted foreground", "all": "all voxels"}
SLIGHT, CLOSE = 0.01, 0.1  # differences of confidence and accuracy
VERDICTS = {
    "none": "no miscalibration shown",
    "slight": "slightly {kind}",
    "unknown": "undecided",
    "shown": "{kind}",
}
ABOUT = (
    "Confidence is the mean probability of the predicted class, accuracy the share of voxels where"
    " it is right. The prediction chooses the voxels of both regions: if it is calibrated, the"
    " difference is 0 up to chance. Means over patients; p-values are Holm-corrected over both"
    " regions. Chance alone gives a case an ECE above 0. Ignore padded voxels (ignore_index): as"
    " easy background, they hide how confident a network is elsewhere."
)


class Judgement(NamedTuple):
    """What a region says of a network.

    Attributes:
        gap: Confidence minus accuracy, with a corrected p-value.
        pooled_ece: ECE of the voxels of all cases together.
        confidence: Mean over patients.
        accuracy: Mean over patients.
    """

    gap: Estimate
    pooled_ece: float
    confidence: float
    accuracy: float

    @property
    def kind(self) -> str:
        """How the network is wrong, if it is."""
        return "overconfident" if self.gap.mean > 0 else "underconfident"

    @property
    def verdict(self) -> str:
        """A key of `VERDICTS`."""
        gap = self.gap
        if gap.p_value < SIGNIFICANT:
            return "slight" if abs(gap.mean) < SLIGHT else "shown"
        # A large ECE: too confident in some bins, and not confident enough in others
        is_close = gap.low <= 0 <= gap.high and max(-gap.low, gap.high, self.pooled_ece) < CLOSE
        return "none" if is_close and gap.cases >= MIN_PATIENTS else "unknown"


def patient_means(means: ArrayLike, patients: pd.Series) -> pd.DataFrame:
    """Return mean confidence and accuracy of each patient, over the cases that have both.

    `means` are those of the cases, `(2, cases)`.
    """
    cases = pd.DataFrame(np.transpose(means), patients.index, ["confidence", "accuracy"])
    return cases.dropna().groupby(patients).mean()


def judge_regions(results: Results, name: str) -> dict[str, Judgement]:
    """Return the judgement of each region that has a voxel: a network may predict no foreground."""
    means, gaps = {}, {}
    for region in REGIONS:
        table = patient_means(results.case_means(name, region), results.patients)
        if len(table):
            means[region] = table.mean()
            gaps[region] = calibration_gap(table["confidence"], table["accuracy"])
    p_values = holm([gap.p_value for gap in gaps.values()])
    judgements = {}
    for (region, gap), p_value in zip(gaps.items(), p_values, strict=True):
        pooled_ece = results.pooled_bins(name, region).expected_error().item()
        corrected = gap._replace(p_value=p_value)
        judgements[region] = Judgement(corrected, pooled_ece, *means[region])
    return judgements


def regions_section(context: Context) -> Section | None:
    """Return confidence and accuracy of each evaluation in both regions, and the judgement."""
    results = context.results
    if not results.has("ece_predicted"):
        return None
    records: list[dict[str, Any]] = []
    answers = []
    for name in results.names:
        for region, judgement in judge_regions(results, name).items():
            records += _records(results, name, region, judgement)
            answers.append(Cell(VERDICTS[judgement.verdict].format(kind=judgement.kind)))
    index = ["region"] if len(results.names) == 1 else ["label", "region"]
    table = tabulate(records, index).assign(**{"calibrated?": answers})
    return Section("regions", "Confidence and accuracy", ABOUT, table, records)


def _records(
    results: Results, name: str, region: str, judgement: Judgement
) -> list[dict[str, Any]]:
    confidence, accuracy = (
        Estimate(mean, cases=judgement.gap.cases)
        for mean in (judgement.confidence, judgement.accuracy)
    )
    title, gap, ece = REGIONS[region], judgement.gap, results.mean(name, f"ece_{region}")
    return [
        results.record(name, "confidence", confidence, region=title),
        results.record(name, "accuracy", accuracy, region=title),
        results.record(name, "gap", gap, region=title, p_value_holm=gap.p_value),
        results.record(name, "ece", ece, region=title, column="ECE of a case"),
    ]
