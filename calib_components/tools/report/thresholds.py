"""Thresholds of the probability: what is found of each structure, and the best ones of validation
cases.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from calib_components.data.overlap import Items, find_shared
from calib_components.errors import InputError
from calib_components.handlers.evaluation_files import Evaluation
from calib_components.tools.report.data import Results
from calib_components.tools.report.page import Section
from calib_components.tools.report.statistics import paired_difference
from calib_components.tools.report.tables import Cell, number, with_interval

SHOWN = ("0.10", "0.25", "0.50", "0.75", "0.90")  # in the table; the CSV file has all
USUAL = 0.5
ABOUT = (
    "A structure is where its probability is above the threshold. Sensitivity, specificity and PPV"
    " (positive predictive value) are of the voxels of all cases together, DSC is the mean over the"
    " cases that have the structure."
)
ABOUT_CHOICE = (
    "To choose a threshold, give an evaluation of validation cases with --validation: the best of"
    " these test cases would be too optimistic."
)


def thresholds_section(results: Results, validation: Path | None) -> tuple[Section, list[str]]:
    """Return what is found at some thresholds, and a notice where validation cases have names of
    those under test.

    Raises:
        InputError: The folder has no thresholds, or those of other structures, or cases or patients
            under test.
    """
    (tested,), about, best, notices = results.evaluations.values(), ABOUT_CHOICE, {}, []
    if validation is not None:
        fitted = Evaluation.read(validation)
        if fitted.thresholds is None or tested.thresholds is None:
            raise InputError(
                f"--validation: {validation} has no thresholds.json. Give an evaluation with"
                " probabilities."
            )
        if {*fitted.structures} != {*tested.structures}:
            names = [", ".join(found.structures) for found in (fitted, tested)]
            raise InputError(
                f"--validation: {validation} has the structures {names[0]}, the evaluation"
                f" {names[1]}."
            )
        notices = check_apart(tested.items(), fitted.items(), validation)
        best = dict(zip(fitted.structures, fitted.thresholds.best().tolist(), strict=True))
    counts, tables, parts = tested.thresholds, {}, []
    assert counts is not None
    for i, name in enumerate(tested.structures):
        dsc = counts.dsc[:, i].where(counts.true[:, i, None] > 0, torch.nan)
        positive, predicted = counts.true_positive[:, i].sum(0), counts.predicted[:, i].sum(0)
        true, voxels = counts.true[:, i].sum(), counts.voxels[:, i].sum()
        measures = {
            "sensitivity ↑": positive / true,
            "specificity ↑": 1 - (predicted - positive) / (voxels - true),
            "PPV ↑": positive / predicted,
            "DSC ↑": dsc.nanmean(0),
        }
        threshold = best.get(name, np.nan)
        index = [
            f"{t:.2f}" + " (chosen)" * bool(np.isclose(t, threshold)) for t in counts.thresholds
        ]
        tables[name] = pd.DataFrame(measures, index)
        if not np.isnan(threshold):
            own, usual = (
                dsc[:, (counts.thresholds - t).abs().argmin()] for t in (threshold, USUAL)
            )
            change = with_interval(paired_difference(own, usual, results.patients()), "dsc", True)
            parts.append(f"{name} {threshold:.2f} (DSC {change} against {USUAL})")
    table = pd.concat(tables, names=["structure", "threshold"])
    shown = table[[threshold[:4] in SHOWN or len(threshold) > 4 for _, threshold in table.index]]
    cells = shown.map(lambda share: Cell(number(share, "aurc" if 0.999 < share < 1 else "dsc")))
    if validation is not None:
        about = f"Thresholds chosen on the validation cases: {', '.join(parts)}."
    return (
        Section("thresholds", "Thresholds", f"{ABOUT} {about}", cells, table.reset_index()),
        notices,
    )


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
