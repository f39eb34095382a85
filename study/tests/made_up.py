"""Results folders of comparisons with made-up numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from study.compare.cells import CellSettings, write_settings
from tests.calib_tools.report.made_up import cases_of, write_evaluation

LABELS = {"ce_dice": "CE+DSC", "svls": "SVLS", "nacl": "NACL"}


def write_cell(
    folder: Path,
    method: str,
    seed: int = 0,
    fold: int | None = None,
    temperature: float | None = None,
    test_sets: Sequence[str] = (),
    gap: float = 0.08,
    **changed: Any,
) -> Path:
    """Write a cell as compare_losses does; `changed` are settings.

    With a fold, of two, it has half of the patients.
    """
    cell = folder / method / (f"seed{seed}" if fold is None else f"seed{seed}_fold{fold}")
    own = cases_of(8) if fold is None else cases_of(4, 4 * fold)
    sets = {"": own, **{name: cases_of(6, 20) for name in test_sets}}
    number = 10 * seed + len(method) + (fold or 0)
    for name, patient_of in sets.items():
        place = cell / f"on_{name}" if name else cell
        write_evaluation(place, patient_of, number, gap)
        if temperature is not None:
            write_evaluation(place / "temperature", patient_of, number, gap / 2)
    if temperature is not None:
        fit = {
            "temperature": temperature,
            "low": 0.9 * temperature,
            "high": 1.1 * temperature,
            "coverage": 0.93,
        }
        fit |= {"leave_one_out": {}, "nll_before": 0.3, "nll_after": 0.2}
        fit |= {"patients": 7, "voxels": 999, "at_edge": False}
        (cell / "temperature" / "temperature.json").write_text(json.dumps(fit))
    training = {
        "seed": seed,
        "loss": method,
        "max_epochs": 2,
        "network_def": {"channels": [16, 32]},
    }
    settings = CellSettings(
        method,
        LABELS[method],
        seed,
        "bundle",
        f"list {fold}",
        own,
        training,
        {"split": "testing"},
        {},
        made_with={"torch": "2.6.1", "device": "cpu"},
        fold=fold,
        folds=None if fold is None else 2,
        calibration={} if temperature is None else {"split": "validation", "region": "all"},
        evaluate_on={name: {"datalist": name, "patients": sets[name]} for name in test_sets},
    )
    write_settings(replace(settings, **changed), cell)
    (cell / "history.csv").write_text("epoch,seconds,val_dsc\n1,2.5,0.7\n2,2.0,0.8\n")
    return cell


def write_comparison(folder: Path, **options: Any) -> Path:
    """Write CE+DSC and NACL with two seeds each; SVLS is planned but not finished."""
    for method, seed in (("ce_dice", 0), ("ce_dice", 1), ("nacl", 0), ("nacl", 1)):
        write_cell(folder, method, seed, gap=0.1 if method == "ce_dice" else 0.02, **options)
    plan = [
        {"method": method, "seed": seed, "commands": []} for method in LABELS for seed in (0, 1)
    ]
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder
