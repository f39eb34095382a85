"""Confidence and accuracy of regions and structures, and whether a network is calibrated.

Whether it is calibrated is a test over patients of confidence minus accuracy, which is 0 on average
if it is; without significance, "no miscalibration" is shown only where the interval contains 0 and
is close to it. The ECE of a calibrated network is above 0 by chance, by an unknown amount: voxels
depend on each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from calib_components.tools.report.data import WITHOUT, Results, Row
from calib_components.tools.report.page import Section
from calib_components.tools.report.statistics import (
    FEWEST_PATIENTS,
    Array,
    Estimate,
    bins_p_value,
    calibration_gap,
    holm,
    mean_of_defined,
    mean_with_interval,
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
    testable = [smallest_p_value(gap.cases, 2 * len(gaps)) < SIGNIFICANT for gap in gaps]
    of_bins = [
        bins_p_value(shares) if test else 1.0
        for shares, test in zip(regions, testable, strict=True)
    ]
    p_values = holm([*(gap.p_value for gap in gaps), *of_bins]).reshape(2, -1).T
    judged = []
    for shares, gap, (p_gap, p_bins) in zip(regions, gaps, p_values, strict=True):
        p_value, size = (
            float(np.minimum(p_gap, p_bins)),
            float(np.abs(mean_of_defined(shares[1] - shares[2])).sum()),
        )
        if p_value < SIGNIFICANT:
            verdict, kind = (
                "slight" if size < SLIGHT else "shown",
                f"{'over' if gap.mean > 0 else 'under'}confident",
            )
            if not p_gap < SIGNIFICANT or abs(gap.mean) < size / 2:
                kind = "too confident in some bins and not confident enough in others"
        else:
            is_close = gap.low <= 0 <= gap.high and max(-gap.low, gap.high, size) < CLOSE
            calibrated = gap.cases >= FEWEST_PATIENTS and is_close
            verdict, kind = (
                "none" if calibrated else "unknown",
                f"{gap.cases} patient{'s' * (gap.cases != 1)}",
            )
        judged.append(Judgement(verdict, kind, gap._replace(p_value=p_value)))
    return judged


def region_shares(results: Results, row: Row, region: str) -> tuple[Array, int]:
    """Return what the voxels of each bin add to 1, confidence and accuracy of a patient, and the
    number of cases.

    The first are means over the cases of a patient that have a voxel in the region, `(3, patients,
    bins)`.
    """
    sums = np.stack(results.case_bins(row, region))
    total = sums[:1].sum(3, keepdims=True)
    shares = np.moveaxis(mean_of_defined(sums / np.where(total > 0, total, np.nan), axis=1), 1, 0)
    defined = ~np.isnan(shares[:, 0, 0])
    names = results.patients()[defined]
    cases = sums_of_patients(np.ones((len(names), 1, 1)), names)
    return np.moveaxis(sums_of_patients(shares[defined], names) / cases, 0, 1), len(names)


def judge_regions(results: Results, row: Row) -> dict[str, Judgement]:
    """Return the judgement of each region that has a voxel: a network may predict no foreground at
    all.
    """
    shares = {region: region_shares(results, row, region) for region in REGIONS}
    judged = zip(
        shares.items(), judge([of_region for of_region, _ in shares.values()]), strict=True
    )
    return {
        region: judgement._replace(confidence=means[0], accuracy=means[1], cases=cases)
        for (region, (of_region, cases)), judgement in judged
        if cases
        for means in [of_region[1:].sum(2).mean(1).tolist()]
    }


def regions_section(results: Results) -> Section:
    """Return confidence and accuracy of each method in both regions, and whether it is calibrated."""
    records, answers = [], []
    for row in results.rows(temperatures=[WITHOUT]):
        for region, found in judge_regions(results, row).items():
            ece = mean_with_interval(results.values(row, f"ece_{region}"), results.patients())
            keys = {"region": REGIONS[region], "unit": "ece", "p_value_holm": np.nan}
            for measure, estimate in (
                ("confidence", found.confidence),
                ("accuracy", found.accuracy),
            ):
                records.append(
                    results.record(row, measure, Estimate(estimate, cases=found.cases), **keys)
                )
            gap = {**keys, "signed": True, "p_value_holm": found.gap.p_value}
            records.append(results.record(row, "gap", found.gap, **gap))
            records.append(results.record(row, "ece", ece, **keys, column="ECE of a case"))
            answers.append(Cell(VERDICTS[found.verdict].format(found.kind)))
    table = tabulate(records, [*["label"] * (len(results.methods) > 1), "region"])
    return Section(
        "regions",
        "Confidence and accuracy",
        ABOUT,
        table.assign(**{"calibrated?": answers}),
        records,
    )
