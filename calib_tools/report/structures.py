"""The section by structure and region: DSC, volumes, confidence and accuracy."""

from __future__ import annotations

from itertools import product
from typing import Any

from calib_tools.report.calibration import (
    MARGIN,
    REGIONS,
    Judgement,
    judge_regions,
    patient_means,
)
from calib_tools.report.data import Context, Results
from calib_tools.report.page import Section
from calib_tools.report.statistics import CalibrationGap, Estimate, holm, holm_levels
from calib_tools.report.tables import Cell, tabulate

SEGMENTATION = ("dsc", "expected_dsc", "optimism", "hd95")
VOLUMES = ("true_volume", "segmented_volume_error", "expected_volume_error")
SHOWN = ("dsc", "hd95", *VOLUMES, "gap")
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


def structures_section(context: Context) -> Section:
    """Return DSC, volumes, confidence and accuracy of each structure, and whether each of them,
    and each region, is calibrated.
    """
    results = context.results
    records = [
        record
        for name in results.names
        for structure in results.structures
        for record in _segmentation_records(results, name, structure)
    ]
    index = ["structure"] if len(results.names) == 1 else ["label", "structure"]
    caption = ABOUT.format(hd95=results.unit, volumes=results.volume_unit)
    judgements = judge_structures(results) | _judge_all_regions(results)
    for (name, structure), judgement in judgements.items():
        records += _calibration_records(results, name, structure, judgement)
    table = tabulate([record for record in records if record["measure"] in SHOWN], index)
    if judgements:
        caption += ABOUT_EXPECTED
        table["calibrated?"] = [Cell(judgement.text) for judgement in judgements.values()]
    return Section("structures", "Structures and regions", caption, table, records)


def _judge_all_regions(results: Results) -> dict[tuple[str, str], Judgement]:
    """Return the judgements of regions, as those of structures."""
    return {
        (name, REGIONS[region]): judgement
        for name in results.names
        for region, judgement in judge_regions(results, name).items()
    }


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


def _segmentation_records(results: Results, name: str, structure: str) -> list[dict[str, Any]]:
    records = []
    for measure in (*SEGMENTATION, *VOLUMES):
        if results.has(f"{measure}_{structure}"):
            estimate = results.mean(name, f"{measure}_{structure}")
            record = results.record(name, measure, estimate, structure=structure)
            if measure in VOLUMES:
                record["unit"] = results.volume_unit
            records.append(record)
    return records


def _calibration_records(
    results: Results, name: str, structure: str, judgement: Judgement
) -> list[dict[str, Any]]:
    gap = judgement.gap
    estimates = {
        "confidence": Estimate(judgement.confidence, cases=gap.cases),
        "accuracy": Estimate(judgement.accuracy, cases=gap.cases),
        "gap": gap,
    }
    return [
        results.record(name, measure, estimate, structure=structure)
        for measure, estimate in estimates.items()
    ]
