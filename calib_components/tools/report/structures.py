"""Sections by structure: DSC, expected DSC, confidence and accuracy, and volumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from calib_components.tools.report.data import Context, Results
from calib_components.tools.report.page import Section
from calib_components.tools.report.statistics import (
    Array,
    Estimate,
    calibration_gap,
    holm,
    mean_of_defined,
)
from calib_components.tools.report.tables import tabulate

MEAN = "mean of structures"
UNITS = {"hd95": "hd95", "in_range": "percent"}
OF_MEANS = ("dsc", "expected_dsc", "optimism", "hd95")
OF_LABEL_MAPS = ("dsc", "hd95")
OF_STRUCTURES = (
    "dsc",
    "expected_dsc",
    "optimism",
    "confidence",
    "accuracy",
    "gap",
    "hd95",
    "true_volume",
    "segmented_volume_error",
    "expected_volume_error",
    "in_range",
)
COMPUTED: Mapping[str, Callable[[Array, Array], Estimate]] = {  # from the means of patients
    "confidence": lambda confidence, _: Estimate(float(mean_of_defined(confidence))),
    "accuracy": lambda _, accuracy: Estimate(float(mean_of_defined(accuracy))),
    "gap": calibration_gap,
}
SIGNED = ("optimism", "gap", "segmented_volume_error", "expected_volume_error")
ABOUT = (
    "Means over the cases where a measure is defined, with 95 % intervals. A missed structure, or"
    " one that is found where there is none, has DSC 0 and no HD95. "
)
ABOUT_UNITS = "HD95 is in {hd95}, volumes are in {volumes}. "
ABOUT_EXPECTED = (
    "Expected DSC: from the probabilities alone, without labels; above the DSC, it is optimistic."
    " Confidence and accuracy: of the voxels that are predicted as the structure, means over"
    " patients; the p-value of their difference is Holm-corrected over the lines. Expected volume:"
    " the sum of the probabilities. In range: cases with the structure whose true volume lies"
    " between that of p > .95 and that of p > .05; at least 90 % if probabilities were true."
)


def structures_section(context: Context) -> Section:
    """Return DSC, expected DSC, confidence and accuracy, and volumes of each structure."""
    results = context.results
    records: list[dict[str, Any]] = []
    for name in results.names:
        for structure in results.structures:
            records += _records(results, name, structure)
        measures = [measure for measure in OF_MEANS if results.has(measure)]
        records += [
            _record(results, name, MEAN, measure, results.mean(name, measure))
            for measure in measures
        ]
    # Of the differences alone: others have no p-value
    corrected = holm([record["p_value"] for record in records])
    for record, p_value in zip(records, corrected, strict=True):
        record["p_value_holm"] = p_value
    index = ["structure"] if len(results.names) == 1 else ["label", "structure"]
    units = ABOUT_UNITS.format(hd95=results.unit, volumes=results.volume_unit)
    caption = ABOUT + units
    if results.has("aurc"):
        caption += ABOUT_EXPECTED
    return Section("structures", "Structures", caption, tabulate(records, index), records)


def _records(results: Results, name: str, structure: str) -> list[dict[str, Any]]:
    """Return the records of a structure."""
    records = []
    for measure in OF_STRUCTURES if results.has("aurc") else OF_LABEL_MAPS:
        if measure in COMPUTED:
            estimate = COMPUTED[measure](*_by_patient(results, name, structure))
        else:
            estimate = results.mean(name, f"{measure}_{structure}")
        records.append(_record(results, name, structure, measure, estimate))
    return records


def _by_patient(results: Results, name: str, structure: str) -> Array:
    """Return the mean confidence and accuracy of each patient, `(2, patients)`."""
    shares = pd.DataFrame(
        {each: results.values(name, f"{each}_{structure}") for each in ("confidence", "accuracy")},
        index=results.patients,
    ).dropna()
    return shares.groupby(level=0).mean().to_numpy().T


def _record(
    results: Results, name: str, structure: str, measure: str, estimate: Estimate
) -> dict[str, Any]:
    unit = results.volume_unit if "volume" in measure else UNITS.get(measure, "dsc")
    keys = {"structure": structure, "unit": unit, "signed": measure in SIGNED}
    return results.record(name, measure, estimate, **keys)
