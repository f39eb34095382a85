"""Sections by structure: DSC, expected DSC, confidence and accuracy, and volumes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from calib_components.tools.report.data import WITHOUT, Results, Row
from calib_components.tools.report.page import Section
from calib_components.tools.report.statistics import (
    Array,
    Estimate,
    calibration_gap,
    holm,
    mean_of_defined,
    mean_with_interval,
)
from calib_components.tools.report.tables import tabulate

MEAN = "mean of structures"
UNITS = {"hd95": "hd95", "in_range": "percent"}
SIGNED = ("optimism", "gap", "segmented_volume_error", "expected_volume_error")
ABOUT = (
    "Means over the cases where a measure is defined, with 95 % intervals over patients: they are"
    " about these trained networks. A missed structure, or one that is found where there is none,"
    " has DSC 0 and no HD95. "
)
ABOUT_EXPECTED = (
    "Expected DSC: from the probabilities alone, without labels; above the DSC, it is optimistic."
    " Confidence and accuracy: of the voxels that are predicted as the structure, means over"
    " patients; the p-value of their difference is Holm-corrected over the lines. Expected volume:"
    " the sum of the probabilities. In range: cases with the structure whose true volume lies"
    " between that of p > .95 and that of p > .05; at least 90 % if probabilities were true."
)


def expected_and_true(results: Results, row: Row) -> tuple[Array, Array]:
    """Return the expected and the true DSC of each case, `(cases,)`: means over the structures that
    have both.
    """
    pair = np.array([
        [results.of_cases(row, f"{measure}_{name}") for name in results.structures]
        for measure in ("expected_dsc", "dsc")
    ])  # fmt: skip
    expected, true = mean_of_defined(np.where(np.isnan(pair).any(0), np.nan, pair), axis=1)
    return expected, true


def confidence_and_accuracy(results: Results, row: Row, name: str) -> tuple[Array, Array]:
    """Return the means over the voxels of a case that are predicted as a structure, `(cases,)`; NaN
    without any.

    The numerators of the expected and the true DSC are twice the sum of the probabilities of these
    voxels, and twice the number of them that are right.
    """
    segmented, expected, true, expected_dsc, dsc = (
        results.values(row, f"{measure}_{name}")
        for measure in ("segmented_volume", "expected_volume", "true_volume", "expected_dsc", "dsc")
    )
    twice = 2 * np.where(segmented > 0, segmented, np.nan)
    confidence, accuracy = (
        expected_dsc * (segmented + expected) / twice,
        dsc * (segmented + true) / twice,
    )
    return mean_of_defined(confidence), mean_of_defined(accuracy)


def structures_section(results: Results) -> Section:
    """Return DSC, expected DSC, confidence and accuracy, and volumes of each method and structure."""
    records: list[dict[str, Any]] = []
    probable = results.has("aurc")  # all have probabilities
    for row in results.rows(temperatures=[WITHOUT]):
        patients = results.patients()
        for name in [*results.structures, MEAN]:
            place = "" if name == MEAN else f"_{name}"
            measured = {"dsc": results.values(row, f"dsc{place}")}
            if probable:
                pair = [
                    results.of_cases(row, f"{measure}{place}")
                    for measure in ("expected_dsc", "dsc")
                    if place
                ]
                measured["expected_dsc"], true = pair or expected_and_true(results, row)
                measured["optimism"] = measured["expected_dsc"] - true
            estimates = {
                measure: mean_with_interval(values, patients)
                for measure, values in measured.items()
            }
            if probable and place:
                shares = pd.DataFrame(
                    confidence_and_accuracy(results, row, name), columns=patients
                ).T.dropna()
                sure, right = shares.groupby(level=0).mean().to_numpy().T
                estimates |= {
                    "confidence": Estimate(float(mean_of_defined(sure))),
                    "accuracy": Estimate(float(mean_of_defined(right))),
                }
                estimates["gap"] = calibration_gap(sure, right)
            estimates["hd95"] = mean_with_interval(results.values(row, f"hd95{place}"), patients)
            for measure, values in (
                _volumes(results, row, place).items() if probable and place else ()
            ):
                estimates[measure] = mean_with_interval(values, patients)
            for measure, estimate in estimates.items():
                keys = {
                    "structure": name,
                    "unit": UNITS.get(measure, "dsc"),
                    "signed": measure in SIGNED,
                }
                keys["unit"] = results.about["volume_unit"] if "volume" in measure else keys["unit"]
                records.append(results.record(row, measure, estimate, **keys))
    # Of the differences alone: others have no p-value
    corrected = holm([record["p_value"] for record in records])
    records = [{**record, "p_value_holm": p} for record, p in zip(records, corrected, strict=True)]
    table = tabulate(records, [*["label"] * (len(results.methods) > 1), "structure"])
    units = f"HD95 is in {results.about['unit']}, volumes are in {results.about['volume_unit']}. "
    return Section(
        "structures", "Structures", ABOUT + units + ABOUT_EXPECTED * probable, table, records
    )


def _volumes(results: Results, row: Row, place: str) -> dict[str, Array]:
    """Return the true volume of a structure, errors of the others, and whether it is in the range,
    of each case.
    """
    kinds = ("true_volume", "segmented_volume", "expected_volume", "volume_low", "volume_high")
    true, segmented, expected, low, high = (
        results.of_cases(row, f"{kind}{place}") for kind in kinds
    )
    present = (true > 0) & ~np.isnan(expected)
    return {
        "true_volume": true,
        "segmented_volume_error": segmented - true,
        "expected_volume_error": expected - true,
        "in_range": np.where(present, 100.0 * ((low <= true) & (true <= high)), np.nan),
    }
