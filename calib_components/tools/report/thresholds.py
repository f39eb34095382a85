"""Thresholds of the probability: what is found of each structure, and the best ones of validation
cases.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from calib_components.data.overlap import Items, find_shared
from calib_components.errors import InputError
from calib_components.handlers.evaluation_files import Evaluation
from calib_components.metrics import ThresholdCounts
from calib_components.tools.report.data import Context, Results
from calib_components.tools.report.page import Section
from calib_components.tools.report.statistics import paired_difference
from calib_components.tools.report.tables import Cell, number, with_interval

SHOWN = ("0.10", "0.25", "0.50", "0.75", "0.90")  # in the table; the CSV file has all
USUAL = 0.5
CHOSEN = " (chosen)"
ABOUT = (
    "A structure is where its probability is above the threshold. Sensitivity, specificity and PPV"
    " (positive predictive value) are of the voxels of all cases together, DSC is the mean over the"
    " cases that have the structure."
)
ABOUT_CHOICE = (
    "To choose a threshold, give an evaluation of validation cases with --validation: the best of"
    " these test cases would be too optimistic."
)


def read_validation(results: Results, folder: Path) -> tuple[Evaluation, list[str]]:
    """Read an evaluation of validation cases, to choose the thresholds of the one under test.

    Returns:
        The evaluation, and a notice where its cases have names of those under test.

    Raises:
        InputError: It has no thresholds, or those of other structures, or cases or patients under
            test.
    """
    (tested,), fitted = results.evaluations.values(), Evaluation.read(folder)
    if fitted.thresholds is None or tested.thresholds is None:
        raise InputError(
            f"--validation: {folder} has no thresholds.json. Give an evaluation with probabilities."
        )
    if {*fitted.structures} != {*tested.structures}:
        names = [", ".join(evaluation.structures) for evaluation in (fitted, tested)]
        raise InputError(
            f"--validation: {folder} has the structures {names[0]}, the evaluation {names[1]}."
        )
    return fitted, check_apart(tested.items(), fitted.items(), folder)


def thresholds_section(context: Context) -> Section | None:
    """Return what is found of each structure at some thresholds, and those that are chosen."""
    results = context.results
    counts = next((each.thresholds for each in results.evaluations.values()), None)
    if len(results.names) > 1 or counts is None:
        return None
    best = _best_thresholds(context.validation)
    tables, chosen, about = {}, [], ABOUT_CHOICE
    for i, name in enumerate(results.structures):
        dsc = counts.dsc[:, i].where(counts.true[:, i, None] > 0, torch.nan)
        index = [f"{threshold:.2f}" for threshold in counts.thresholds]
        if name in best:
            place = int((counts.thresholds - best[name]).abs().argmin())
            index[place] += CHOSEN
            usual = dsc[:, (counts.thresholds - USUAL).abs().argmin()]
            difference = paired_difference(dsc[:, place], usual, results.patients)
            change = with_interval(difference, "dsc", True)
            chosen.append(f"{name} {best[name]:.2f} (DSC {change} against {USUAL})")
        tables[name] = pd.DataFrame(_measures(counts, i) | {"DSC ↑": dsc.nanmean(0)}, index)
    if chosen:
        about = f"Thresholds chosen on the validation cases: {', '.join(chosen)}."
    table = pd.concat(tables, names=["structure", "threshold"])
    thresholds = table.index.get_level_values("threshold")
    shown = table[thresholds.str.endswith(CHOSEN) | thresholds.str[:4].isin(SHOWN)].map(_cell)
    return Section("thresholds", "Thresholds", f"{ABOUT} {about}", shown, table.reset_index())


def _best_thresholds(validation: Evaluation | None) -> dict[str, float]:
    if validation is None or validation.thresholds is None:
        return {}
    return dict(zip(validation.structures, validation.thresholds.best().tolist(), strict=True))


def _measures(counts: ThresholdCounts, i: int) -> dict[str, torch.Tensor]:
    """Return the measures of the voxels of all cases together of a structure, by title."""
    positive, predicted = counts.true_positive[:, i].sum(0), counts.predicted[:, i].sum(0)
    true, voxels = counts.true[:, i].sum(), counts.voxels[:, i].sum()
    return {
        "sensitivity ↑": positive / true,
        "specificity ↑": 1 - (predicted - positive) / (voxels - true),
        "PPV ↑": positive / predicted,
    }


def _cell(share: float) -> Cell:
    is_close_to_1 = 0.999 < share < 1
    return Cell(number(share, "aurc" if is_close_to_1 else "dsc"))


def check_apart(cases: Items, others: Items, folder: Path) -> list[str]:
    """Refuse thresholds chosen on the cases under test; return a notice where only their names are
    the same.
    """
    shared = find_shared(cases, others)
    if certain := [pair for pair in shared if not pair.is_only_name]:
        raise InputError(
            f"--validation: {folder} has {len(certain)} of the cases or patients under test:"
            f" {certain[0]}. Give an evaluation of other patients."
        )
    about = (
        "of the cases have names of the validation folder, too. If they are the same, thresholds"
        " were chosen on them."
    )
    return [f"{len(shared)} {about}"] if shared else []
