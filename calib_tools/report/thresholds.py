"""Thresholds of the probability that are the best on validation cases, and what is found with
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from calib_components.errors import InputError
from calib_tools.report.data import Context
from calib_tools.report.page import Section
from calib_tools.report.statistics import paired_difference
from calib_tools.report.tables import Cell, number, with_interval
from calib_workflows.data.overlap import Items, find_shared
from calib_workflows.evaluation_files import Evaluation

USUAL = 0.5
ABOUT = (
    "A structure is where its probability is above the threshold: 0.5, or the best on the"
    " validation cases. Sensitivity and PPV (positive predictive value) are of the"
    " voxels of all cases together, DSC is the mean over the cases that have the structure. Its"
    " change against 0.5: {changes}."
)


def read_validation(
    folder: Path,
    structures: Sequence[str],
    tested: Mapping[str, Any],
    cases: Items,
    patient_pattern: str | None = None,
    by_name: bool = False,
) -> tuple[Evaluation, list[str]]:
    """Read an evaluation of validation cases, to choose what others are evaluated with.

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
    if fitted.thresholds is None:
        raise InputError(
            f"--validation: {folder} has no thresholds.json. Give an evaluation with probabilities."
        )
    there = _compared(fitted.summary, fitted.structures)
    for name, value in _compared(tested, structures).items():
        if there[name] != value and value:
            raise InputError(
                f"--validation: {folder} has the {name} {there[name] or 'none'}, not {value}."
                " Evaluate the validation cases as those under test."
            )
    return fitted, check_apart(cases, fitted.items(patient_pattern), folder, by_name)


def _compared(summary: Mapping[str, Any], structures: Sequence[str]) -> dict[str, str]:
    """Return what evaluations of validation and test cases have in common, as texts."""
    done = summary.get("calibration") or {"calibrator": "none"}
    calibration = [str(done[key]) for key in ("calibrator", "region", "patients") if key in done]
    codes = summary.get("arguments", {}).get("structures")
    objects = summary.get("objects", {})
    return {
        "structures": codes or ", ".join(structures),
        "sigmoid": str(bool(summary.get("sigmoid"))),
        "calibration": " ".join(calibration),
        "objects": str(objects) if objects.get("structures") else "",
    }


def thresholds_section(context: Context) -> Section | None:
    """Return what is found of each structure at 0.5 and at the best threshold of validation
    cases.
    """
    fitted = context.validation
    if fitted is None or fitted.thresholds is None:
        return None
    (tested,) = context.results.evaluations.values()
    assert tested.thresholds is not None
    counts, values = tested.thresholds, tested.thresholds.thresholds
    best = dict(zip(fitted.structures, fitted.thresholds.best().tolist(), strict=True))
    tables, changes = {}, []
    for i, name in enumerate(tested.structures):
        places = [int((values - each).abs().argmin()) for each in (USUAL, best[name])]
        dsc = counts.dsc[:, i].where(counts.true[:, i, None] > 0, torch.nan)
        usual, chosen = dsc[:, places].T
        change = paired_difference(chosen, usual, context.results.patients)
        changes.append(f"{name} {with_interval(change, 'dsc', True)}")
        positive = counts.true_positive[:, i, places].sum(0)
        shares = {
            "sensitivity ↑": positive / counts.true[:, i].sum(),
            "PPV ↑": positive / counts.predicted[:, i, places].sum(0),
            "DSC ↑": dsc[:, places].nanmean(0),
        }
        tables[name] = pd.DataFrame(shares, values[places].tolist())
    table = pd.concat(tables, names=["structure", "threshold"])
    caption = ABOUT.format(changes=", ".join(changes))
    shown = table.map(lambda share: Cell(number(share, "dsc")))
    shown = shown.rename("{:.2f}".format, level="threshold")
    return Section("thresholds", "Thresholds", caption, shown, table.reset_index())


def check_apart(cases: Items, others: Items, folder: Path, by_name: bool = False) -> list[str]:
    """Refuse thresholds chosen on the cases under test; return a notice where only their names are
    the same, or refuse them `by_name`, too.
    """
    shared = find_shared(cases, others)
    if certain := [pair for pair in shared if by_name or not pair.is_only_name]:
        raise InputError(
            f"--validation: {folder} has {len(certain)} of the cases or patients under test:"
            f" {certain[0]}. Give an evaluation of other patients, with other names."
        )
    about = (
        "of the cases have names of the validation folder, too. If they are the same, thresholds"
        " were chosen on them."
    )
    return [f"{len(shared)} {about}"] if shared else []
