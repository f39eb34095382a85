"""Sections by structure: DSC, expected DSC, volumes, confidence and accuracy."""

from __future__ import annotations

from typing import Any

from calib_components.tools.report.calibration import patient_means
from calib_components.tools.report.data import Context, Results
from calib_components.tools.report.page import Section
from calib_components.tools.report.statistics import Estimate, calibration_gap, holm
from calib_components.tools.report.tables import tabulate

SEGMENTATION = ("dsc", "expected_dsc", "optimism", "hd95")
VOLUMES = ("true_volume", "segmented_volume_error", "expected_volume_error")
ABOUT = (
    "Means over the cases where a measure is defined, with 95 % intervals. A missed structure, or"
    " one that is found where there is none, has DSC 0 and no HD95. HD95 is in {hd95}, volumes are"
    " in {volumes}."
)
ABOUT_EXPECTED = (
    " Expected DSC: from the probabilities alone, without labels; above the DSC, it is optimistic."
    " Expected volume: the sum of the probabilities. Confidence and accuracy: of the voxels that"
    " are predicted as the structure, means over patients; the p-value of their difference is"
    " Holm-corrected over the lines."
)


def structures_section(context: Context) -> Section:
    """Return DSC, expected DSC, volumes, confidence and accuracy of each structure."""
    results = context.results
    records: list[dict[str, Any]] = []
    for name in results.names:
        for structure in results.structures:
            records += _records(results, name, structure)
    # Of the differences alone: others have no p-value
    corrected = holm([record["p_value"] for record in records])
    for record, p_value in zip(records, corrected, strict=True):
        record["p_value_holm"] = p_value
    index = ["structure"] if len(results.names) == 1 else ["label", "structure"]
    caption = ABOUT.format(hd95=results.unit, volumes=results.volume_unit)
    if results.has("expected_dsc"):
        caption += ABOUT_EXPECTED
    return Section("structures", "Structures", caption, tabulate(records, index), records)


def _records(results: Results, name: str, structure: str) -> list[dict[str, Any]]:
    """Return the records of a structure."""
    records = []
    for measure in (*SEGMENTATION, *VOLUMES):
        if results.has(f"{measure}_{structure}"):
            estimate = results.mean(name, f"{measure}_{structure}")
            record = results.record(name, measure, estimate, structure=structure)
            if measure in VOLUMES:
                record["unit"] = results.volume_unit
            records.append(record)
    if results.has(f"confidence_{structure}"):
        values = [
            results.values(name, f"{each}_{structure}") for each in ("confidence", "accuracy")
        ]
        means = patient_means(values, results.patients)
        estimates = {each: Estimate(means[each].mean(), cases=len(means)) for each in means}
        estimates["gap"] = calibration_gap(means["confidence"], means["accuracy"])
        records += [
            results.record(name, measure, estimate, structure=structure)
            for measure, estimate in estimates.items()
        ]
    return records
