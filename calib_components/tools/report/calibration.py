"""Confidence and accuracy of regions and structures, and whether a network is calibrated.

Whether it is calibrated is a test over patients of confidence minus accuracy, which is 0 on average
if it is; without significance, "no miscalibration" is shown only where the interval contains 0 and
is close to it. The ECE of a calibrated network is above 0 by chance, by an unknown amount: voxels
depend on each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from calib_components.tools.report.data import Context, Results
from calib_components.tools.report.page import Section
from calib_components.tools.report.statistics import (
    MIN_PATIENTS,
    Array,
    Estimate,
    bins_p_value,
    calibration_gap,
    holm,
    mean_of_defined,
    smallest_p_value,
    sums_of_patients,
)
from calib_components.tools.report.tables import SIGNIFICANT, Cell, tabulate

REGIONS = {"predicted": "predicted foreground", "all": "all voxels"}
SLIGHT, CLOSE = 0.01, 0.1  # differences of confidence and accuracy
VERDICTS = {  # from the mildest to what outweighs the others
    "none": "no miscalibration shown",
    "slight": "slightly {}",
    "unknown": "{}: too few to tell",
    "shown": "{}",
}
MIXED = "too confident in some bins and not confident enough in others"
ABOUT = (
    "Confidence is the mean probability of the predicted class, accuracy the share of voxels where"
    " it is right. The prediction chooses the voxels of both regions: if it is calibrated, the"
    " difference is 0 up to chance. Means over patients; p-values are of the difference and of its"
    " single bins, Holm-corrected over these and both regions. Chance alone gives a case an ECE"
    " above 0. Ignore padded voxels (ignore_index): as easy background, they hide how confident a"
    " network is elsewhere."
)


class Judgement(NamedTuple):
    """What a region says of a network."""

    verdict: str  # a key of VERDICTS
    kind: str  # how it is wrong, or how many patients there are
    gap: Estimate  # confidence minus accuracy, with a corrected p-value
    confidence: float = np.nan
    accuracy: float = np.nan
    cases: int = 0


def judge(regions: Sequence[Array]) -> list[Judgement]:
    """Return what each region says of a network.

    Given of each region is what the voxels of each bin add to 1, confidence and accuracy of a
    patient, `(3, patients, bins)`. The p-value is the lower one of mean and bins, corrected for
    both in all regions.
    """
    gaps = [calibration_gap(*shares[1:].sum(2)) for shares in regions]
    bin_p_values = []
    for shares, gap in zip(regions, gaps, strict=True):
        is_testable = smallest_p_value(gap.cases, 2 * len(gaps)) < SIGNIFICANT
        bin_p_values.append(bins_p_value(shares) if is_testable else 1.0)
    p_values = holm([*(gap.p_value for gap in gaps), *bin_p_values]).reshape(2, -1).T
    return [_judge(*region) for region in zip(regions, gaps, p_values, strict=True)]


def _judge(shares: Array, gap: Estimate, p_values: Array) -> Judgement:
    """Return what a region says, from corrected p-values of the mean and of the bins."""
    p_gap, p_bins = p_values
    p_value = float(np.minimum(p_gap, p_bins))
    size = float(np.abs(mean_of_defined(shares[1] - shares[2])).sum())
    gap = gap._replace(p_value=p_value)
    if p_value >= SIGNIFICANT or np.isnan(p_value):
        is_close = gap.low <= 0 <= gap.high and max(-gap.low, gap.high, size) < CLOSE
        verdict = "none" if gap.cases >= MIN_PATIENTS and is_close else "unknown"
        return Judgement(verdict, "1 patient" if gap.cases == 1 else f"{gap.cases} patients", gap)
    verdict = "slight" if size < SLIGHT else "shown"
    is_mixed = not p_gap < SIGNIFICANT or abs(gap.mean) < size / 2
    if is_mixed:
        return Judgement(verdict, MIXED, gap)
    return Judgement(verdict, "overconfident" if gap.mean > 0 else "underconfident", gap)


def patient_shares(results: Results, name: str, region: str) -> tuple[Array, int]:
    """Return what the voxels of each bin add to 1, confidence and accuracy of a patient.

    Returns:
        Means over the cases of a patient that have a voxel in the region, `(3, patients, bins)`,
        and the number of these cases.
    """
    shares = np.moveaxis(results.shares(name, region), 1, 0)
    defined = ~np.isnan(shares[:, 0, 0])
    patients = results.patients[defined]
    cases = sums_of_patients(np.ones((len(patients), 1, 1)), patients)
    return np.moveaxis(sums_of_patients(shares[defined], patients) / cases, 0, 1), len(patients)


def judge_regions(results: Results, name: str) -> dict[str, Judgement]:
    """Return the judgement of each region that has a voxel: a network may predict no foreground."""
    shares = [patient_shares(results, name, region) for region in REGIONS]
    judgements = judge([region_shares for region_shares, _ in shares])
    by_region = {}
    for region, (region_shares, cases), judgement in zip(REGIONS, shares, judgements, strict=True):
        if cases:
            confidence, accuracy = region_shares[1:].sum(2).mean(1).tolist()
            by_region[region] = judgement._replace(
                confidence=confidence, accuracy=accuracy, cases=cases
            )
    return by_region


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
            answers.append(Cell(VERDICTS[judgement.verdict].format(judgement.kind)))
    index = ["region"] if len(results.names) == 1 else ["label", "region"]
    table = tabulate(records, index).assign(**{"calibrated?": answers})
    return Section("regions", "Confidence and accuracy", ABOUT, table, records)


def _records(
    results: Results, name: str, region: str, judgement: Judgement
) -> list[dict[str, Any]]:
    keys = {"region": REGIONS[region], "unit": "ece", "p_value_holm": np.nan}
    confidence, accuracy = (
        Estimate(mean, cases=judgement.cases) for mean in (judgement.confidence, judgement.accuracy)
    )
    tested = {**keys, "signed": True, "p_value_holm": judgement.gap.p_value}
    ece = results.mean(name, f"ece_{region}")
    return [
        results.record(name, "confidence", confidence, **keys),
        results.record(name, "accuracy", accuracy, **keys),
        results.record(name, "gap", judgement.gap, **tested),
        results.record(name, "ece", ece, **keys, column="ECE of a case"),
    ]
