"""Results folders that are made up here, and the little of prepared data that planning needs."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from calib_components.handlers.evaluation_files import (
    write_calibration,
    write_cases,
    write_risk_coverage,
    write_thresholds,
)
from calib_components.metrics import CalibrationBins, ThresholdCounts
from calib_components.posthoc import TemperatureEstimate
from calib_components.tools.compare.cell_settings import (
    CellSettings,
    Condition,
    read_settings,
    write_settings,
)

STRUCTURES = ("RV", "MYO", "LV")
CLASSES = ["background", "right ventricle", "myocardium", "left ventricle"]
METHODS = {"ce_dice": "CE+DSC", "svls": "SVLS", "nacl": "NACL"}
PATIENTS = 6


def make_finished_cell(
    folder: Path,
    method: str,
    seed: int,
    ece: float,
    fold: int | None = None,
    temperature: float | None = None,
    test_sets: tuple[str, ...] = (),
    datalist: str = "",
    **training: Any,
) -> None:
    """A cell as compare_losses writes it: two cases per patient, random DSC and HD95, and an ECE near `ece`.

    With a fold, of two, it has half of the patients. With a temperature it is also evaluated with it, in regions, too;
    without, it has the ground-truth foreground alone. Test sets have three patients.
    """
    rng = np.random.default_rng([seed, *method.encode()])
    cell = folder / method / (f"seed{seed}" if fold is None else f"seed{seed}_fold{fold}")
    patients = range(PATIENTS) if fold is None else range(fold * PATIENTS // 2, (fold + 1) * PATIENTS // 2)
    cases = [f"patient{i:03d}_frame{j:02d}" for i in patients for j in (1, 12)]
    shifted = [f"other{i}_frame01" for i in range(3)]
    make_evaluation(cell, cases, rng, ece, with_regions=temperature is not None)
    settings = CellSettings(
        method=method,
        label=METHODS[method],
        seed=seed,
        bundle="acdc_mri_nacl_segmentation",
        datalist=f"{datalist} {fold}",
        patients=patients_of(cases),
        training={
            "seed": seed,
            "max_epochs": 2,
            "batch_size": 16,
            "learning_rate": 0.001,
            "val_interval": 4,
            "image_size": [64, 64],
            "crop_size": [48, 48],
            "network_def": {"channels": [16, 32]},
            "loss": {"_target_": method},
            **training,
        },
        evaluation={"split": "testing"},
        overrides={},
        commands=[],
        made_with={"torch": "2.13.0", "device": "cpu"},
        fold=fold,
        folds=None if fold is None else 2,
        calibration={}
        if temperature is None
        else {"split": "validation", "region": "all", **({} if fold is None else {"folds": 2})},
        evaluate_on={name: {"datalist": name, "patients": patients_of(shifted)} for name in test_sets},
    )
    write_settings(settings, cell)
    (cell / "history.csv").write_text("epoch,seconds,val_dsc\n1,2.5,0.7\n2,2.0,0.8\n")
    for condition in settings.conditions[1:]:
        listed = shifted if condition.test_set else cases
        make_evaluation(cell / condition.folder, listed, rng, ece, with_regions=temperature is not None)
        if condition == Condition(scaled=True):
            fit = TemperatureEstimate(
                temperature, 0.9 * temperature, 1.1 * temperature, 0.93, {}, 0.3, 0.2, 7, 999, False
            )
            (cell / condition.folder / "temperature.json").write_text(json.dumps(fit.to_dict()))


def without_temperature(cell: Path) -> None:
    """Make a fold as it is before the temperature of all folds is fitted."""
    settings = read_settings(cell)
    for condition in settings.conditions:
        if condition.scaled:
            shutil.rmtree(cell / condition.folder)
    write_settings(replace(settings, calibration={}), cell)


def patients_of(cases: list[str]) -> dict[str, str]:
    """The patient of each case."""
    return {case: case.partition("_")[0] for case in cases}


def make_fit(temperature: float) -> TemperatureEstimate:
    """A fit on seven patients whose interval is a tenth to either side."""
    return TemperatureEstimate(temperature, 0.9 * temperature, 1.1 * temperature, 0.93, {}, 0.3, 0.2, 7, 999, False)


def make_evaluation(folder: Path, cases: list[str], rng: np.random.Generator, ece: float, with_regions: bool) -> None:
    """The files of an evaluation, in which RV of the first case is missed."""
    (folder / "cases").mkdir(parents=True)
    columns = {
        **{f"dsc_{s}": rng.uniform(0.7, 0.9, len(cases)) for s in STRUCTURES},
        **{f"hd95_{s}": rng.uniform(1, 5, len(cases)) for s in STRUCTURES},
        "ece": ece + rng.uniform(-0.01, 0.01, len(cases)),
        **{name: rng.uniform(0.1, 0.2, len(cases)) for name in ("cece", "nll", "brier")},
    }
    if with_regions:
        further = ("ece_if_true", "cece_if_true", "ece_all", "cece_all", "nll_all", "ece_predicted", "nll_predicted")
        columns |= {name: rng.uniform(0.01, 0.1, len(cases)) for name in further}
    columns["dsc_RV"][0], columns["hd95_RV"][0] = 0, np.nan  # missed
    with open(folder / "cases.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", *columns])
        for case, *row in zip(cases, *columns.values(), strict=True):
            writer.writerow([case, *("" if np.isnan(value) else value for value in row)])
    missed = [{"case": cases[0], "structure": "RV"}]
    summary = {"missed": missed, "spurious": [], "patients": patients_of(cases), "unit": "voxels"}
    (folder / "summary.json").write_text(json.dumps({**summary, "volume_unit": "voxels"}))
    count = torch.arange(1000, 16000, 1000).expand(len(cases), -1)
    middle = (torch.arange(15) + 0.5) / 15
    of_cases = CalibrationBins(count, (count * middle).double(), (count * middle**2).double())
    of_classes = CalibrationBins(*(field[:, None].expand(-1, len(CLASSES), -1) for field in vars(of_cases).values()))
    bins = {"top_label": of_cases, "classwise": of_classes}
    kinds = {kind: of_kind.pooled() for kind, of_kind in bins.items()}
    chosen = dict.fromkeys(("all", "predicted") if with_regions else (), kinds | {"top_label_per_case": of_cases})
    write_calibration(folder, CLASSES, cases, bins, {"foreground": kinds, **chosen})
    logits = {"class_names": CLASSES, "magnitudes": rng.uniform(0, 9, (4, 4)).tolist()}
    (folder / "logits.json").write_text(json.dumps(logits))
    for name in ("best", "median", "worst"):
        figure = Figure(figsize=(3, 1))
        figure.suptitle(f"{folder.parent.name} {name}")
        figure.savefig(folder / "cases" / f"{name}.png")


def make_folder(
    folder: Path,
    patients: int = 8,
    seed: int = 0,
    gap: float = 0.08,
    with_probabilities: bool = True,
    **summary: Any,
) -> Path:
    """An evaluation folder of any network, two cases per patient: overconfident by `gap` in every bin and case.

    Cases of lower DSC have a lower expected DSC. With probabilities it has all files but logits; without, those of
    label maps. `summary` changes entries of summary.json, such as the unit; None removes them.
    """
    rng = np.random.default_rng(seed)
    cases = [f"patient{i:03d}_frame{j:02d}" for i in range(patients) for j in (1, 12)]
    (folder / "cases").mkdir(parents=True)
    quality = rng.uniform(0.5, 0.9, len(cases))
    columns = {
        **{f"dsc_{s}": quality + rng.uniform(0, 0.05, len(cases)) for s in STRUCTURES},
        **{f"hd95_{s}": rng.uniform(1, 5, len(cases)) for s in STRUCTURES},
    }
    if with_probabilities:
        error = abs(gap) + rng.uniform(-0.01, 0.01, len(cases))
        columns |= {
            "ece": error,
            "cece": error / 2,
            "nll": 4 * error,
            "brier": 2 * error,
            "ece_if_true": 0 * error + 0.1,
        }
        for region, share in (("all", 0.25), ("predicted", 1)):
            columns |= {f"{name}_{region}": share * columns[name] for name in ("ece", "cece", "nll", "brier")}
            columns[f"smooth_ece_{region}"] = 0.9 * columns[f"ece_{region}"]
        for s in STRUCTURES:
            true = 80 + 2.0 * np.arange(len(cases))  # of a case the same in all folders
            columns |= {
                f"true_volume_{s}": true,
                f"segmented_volume_{s}": true - 1,
                f"expected_volume_{s}": true + rng.uniform(-2, 6, len(cases)),
            }
            columns |= {f"volume_low_{s}": true - 10, f"volume_high_{s}": true + rng.uniform(-2, 20, len(cases))}
            columns[f"expected_dsc_{s}"] = np.clip(columns[f"dsc_{s}"] + gap, 0, 1)
        columns |= {"aurc": error / 10, "error_share_5": 0.5 + error}
        thresholds = torch.arange(1, 100) / 100
        true = torch.full((len(cases), len(STRUCTURES)), 1000)
        predicted = (1500 * (1.2 - thresholds)).long().expand(*true.shape, -1)
        positive = torch.minimum(predicted, true[..., None]) * 9 // 10
        counts = ThresholdCounts(thresholds.double(), positive, predicted, true, 10 * true)
        write_thresholds(folder, STRUCTURES, cases, counts)
        coverage = torch.linspace(0.05, 1, 20)
        risk = torch.from_numpy(error)[:, None] * coverage**2
        write_risk_coverage(folder, cases, coverage, risk)
        count = torch.arange(1000, 16000, 1000).expand(len(cases), -1)
        confidence = (torch.arange(15) + 0.5) / 15
        of_cases = CalibrationBins(
            count, (count * confidence).double(), (count * (confidence - gap).clip(0, 1)).double()
        )
        kinds = dict.fromkeys(("top_label", "classwise"), of_cases.pooled())
        regions = {"foreground": kinds, **dict.fromkeys(("all", "predicted"), kinds | {"top_label_per_case": of_cases})}
        write_calibration(folder, CLASSES, cases, dict.fromkeys(kinds, of_cases), regions)
    write_cases(folder, cases, {name: torch.from_numpy(values) for name, values in columns.items()})
    content = {
        "missed": [],
        "spurious": [],
        "patients": patients_of(cases),
        "unit": "mm",
        "volume_unit": "ml",
        **({"channels": len(CLASSES), "sigmoid": False} if with_probabilities else {}),
        **summary,
    }
    known = {name: value for name, value in content.items() if value is not None}
    (folder / "summary.json").write_text(json.dumps(known))
    for name in ("best", "median", "worst"):
        figure = Figure(figsize=(3, 1))
        figure.suptitle(name)
        figure.savefig(folder / "cases" / f"{name}.png")
    return folder


def make_datalist(training: str, validation: str, testing: str) -> dict[str, list[dict[str, str]]]:
    """A list of one case of one patient for each split."""
    patients = {"training": training, "validation": validation, "testing": testing}
    return {split: [{"case": f"{patient}_1", "patient": patient}] for split, patient in patients.items()}


def make_results(folder: Path) -> Path:
    """CE+DSC with two seeds, NACL with one; SVLS is planned but not finished."""
    for method, seed, ece in (("nacl", 0, 0.05), ("ce_dice", 0, 0.13), ("ce_dice", 1, 0.15)):
        make_finished_cell(folder, method, seed, ece)
    plan = [{"method": method, "seed": 0, "commands": []} for method in METHODS]
    plan.append({"method": "ce_dice", "seed": 1, "commands": []})
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder
