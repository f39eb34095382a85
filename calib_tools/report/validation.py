"""An evaluation of validation cases, for limits and a threshold of objects of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calib_components.errors import InputError
from calib_workflows.data.overlap import Items, find_shared
from calib_workflows.evaluation_files import Evaluation

SAME_NAMES = (
    "{number} of the cases have names of the validation folder, too. If they are the same, limits"
    " and thresholds are of them."
)


def read_validation(
    folder: Path,
    structures: Sequence[str],
    tested: Mapping[str, Any],
    cases: Items,
    patient_pattern: str | None = None,
    by_name: bool = False,
) -> tuple[Evaluation, list[str]]:
    """Read an evaluation of validation cases, to judge others by.

    Args:
        folder: Its folder.
        structures: Names of the structures of the others.
        tested: Summary of the others: whether channels are a `sigmoid`, their `calibration`, and
            the label codes of `structures` among the `arguments`.
        cases: Cases under test.
        patient_pattern: See `evaluate_predictions`.
        by_name: Whether cases of one name are the same.

    Returns:
        The evaluation, and a notice where its cases have names of those under test.

    Raises:
        InputError: It is of label maps, other structures, a softmax for sigmoids, or other
            calibration, or has cases or patients under test.
    """
    fitted = Evaluation.read(folder)
    if not fitted.regions:
        raise InputError(
            f"--validation: {folder} is of label maps. Give an evaluation with probabilities."
        )
    there = _compared(fitted.summary, fitted.structures)
    for name, value in _compared(tested, structures).items():
        if there[name] != value and value:
            raise InputError(
                f"--validation: {folder} has the {name} {there[name] or 'none'}, not {value}."
                " Evaluate the validation cases as those under test."
            )
    shared = find_shared(cases, fitted.items(patient_pattern))
    if certain := [pair for pair in shared if by_name or not pair.is_only_name]:
        raise InputError(
            f"--validation: {folder} has {len(certain)} of the cases or patients under test:"
            f" {certain[0]}. Give an evaluation of other patients, with other names."
        )
    return fitted, [SAME_NAMES.format(number=len(shared))] if shared else []


def _compared(summary: Mapping[str, Any], structures: Sequence[str]) -> dict[str, str]:
    """Return what evaluations of validation and test cases have in common, as texts."""
    done = summary.get("calibration") or {"calibrator": "none"}
    codes = summary.get("arguments", {}).get("structures")
    objects = summary.get("objects", {})
    return {
        "structures": codes or ", ".join(structures),
        "sigmoid": str(bool(summary.get("sigmoid"))),
        "calibration": " ".join(map(str, done.values())),
        "objects": str(objects) if objects.get("structures") else "",
    }
