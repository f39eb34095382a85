"""Confidence and accuracy of regions, and whether a network is calibrated.

The answer is that of the interval of confidence minus accuracy, a mean over patients, and of a
margin. The ECE of a calibrated network is above 0 by chance, by an unknown amount: voxels depend on
each other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from calib_components.tools.report.data import Context, Results
from calib_components.tools.report.page import Section
from calib_components.tools.report.statistics import CalibrationGap, Estimate
from calib_components.tools.report.tables import Cell, tabulate

REGIONS = {"predicted": "predicted foreground", "all": "all voxels"}
MARGIN = 0.02  # a network is calibrated within it
VERDICTS = {
    "calibrated": f"calibrated within {MARGIN}",
    "slight": f"calibrated within {MARGIN}, slightly {{kind}}",
    "shown": "{kind}",
    "undecided": "undecided",
}
ABOUT = (
    "Confidence is the mean probability of the predicted class, accuracy the share of voxels where"
    " it is right. The prediction chooses the voxels of both regions: if it is calibrated, the"
    " difference is 0 up to chance. Means over patients. Calibrated within a margin: the interval"
    " of the difference is; over- or underconfident: it leaves out 0. Chance alone gives a case an"
    " ECE above 0. Ignore padded voxels (ignore_index): as easy background, they hide how confident"
    " a network is elsewhere."
)


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
    """Return the judgement of each region that has a voxel: a network may predict no foreground."""
    judgements = {}
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
            answers.append(Cell(judgement.text))
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
        results.record(name, "gap", gap, region=title),
        results.record(name, "ece", ece, region=title, column="ECE of a case"),
    ]
