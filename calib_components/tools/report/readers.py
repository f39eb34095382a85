"""Readers of a report: results folders of compare_losses, and evaluation folders of any network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from calib_components.errors import InputError, printable, reading
from calib_components.handlers.calibration import read_estimate
from calib_components.handlers.evaluation_files import Evaluation
from calib_components.tools.report.data import COMPACT, KEYS, SUMS, WITH, WITHOUT, Results, read_compact

TRAINING = ("max_epochs", "batch_size", "learning_rate", "val_interval", "image_size", "crop_size")
TOLERANCE = 2e-6  # of volumes, relative
TABLES = ("cases", "bins")
NAMED = 6  # columns and cases that a notice names


def read_evaluation(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Read an evaluation folder.

    Returns:
        Cases, bins and what holds for all, as those of `Results` without `KEYS`.

    Raises:
        InputError: A file is missing or broken.
    """
    evaluation = Evaluation.read(folder)
    names, summary = evaluation.cases["case"].tolist(), evaluation.summary
    with reading(folder / "summary.json", "the summary of an evaluation"):
        counts = {kind: [str(found["case"]) for found in summary[kind]] for kind in ("missed", "spurious")}
        patients = [summary["patients"][name] for name in names]
        about = {"unit": summary["unit"], "volume_unit": summary["volume_unit"], "channels": ""}
        if "channels" in summary:
            kind = "{} sigmoid(s)" if summary["sigmoid"] else "a softmax over {} classes"
            about["channels"] = kind.format(summary["channels"])
    found_in_one = {kind: [of.count(name) for name in names] for kind, of in counts.items()}
    known = pd.DataFrame({"case": names, "patient": patients, **found_in_one})
    cases = pd.concat([known, evaluation.cases.drop(columns="case")], axis=1)
    tables = []
    for region, kinds in evaluation.regions.items():
        if bins := kinds.get("top_label_per_case"):
            sums = zip(SUMS, (bins.count, bins.confidence_sum, bins.num_correct), strict=True)
            wide = {f"{name}_{i + 1}": part[:, i] for name, part in sums for i in range(part.shape[1])}
            tables.append(pd.DataFrame({"case": names, "region": region, **wide}))
    return cases, pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({"case": [], "region": []}), about


def read_cells(folder: Path) -> Results:
    """Read all finished cells of a results folder of compare_losses, or the compact form of one.

    Raises:
        InputError: There is none, a file is broken, or cells differ in more than loss, seed and fold.
    """
    if (folder / COMPACT).exists():
        return read_compact(folder)
    found = {}
    for file in sorted(folder.glob("*/seed*/settings.json")):
        with reading(file, "the settings of a cell"):
            found[file.parent] = json.loads(file.read_bytes())
    if not found:
        raise InputError(f"{folder}: no finished cell, METHOD/seedN/settings.json, is in it.")
    _check_comparable(found)
    tables: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    cells, temperatures = [], []
    magnitudes: dict[str, list[Any]] = {}
    folders: dict[str, Path] = {}
    about: dict[str, Any] = {}
    for cell, settings in found.items():
        keys = {name: settings.get(name) or 0 for name in KEYS[:3]}
        for of_keys, place in _evaluations(cell, settings):
            *read, about = read_evaluation(place)
            for name, table in zip(TABLES, read, strict=True):
                tables[name].append(pd.concat([pd.DataFrame([keys | of_keys] * len(table)), table], axis=1))
        evaluation = Evaluation.read(cell)
        class_names = list(evaluation.class_names)
        magnitudes.setdefault(settings["method"], []).append(evaluation.magnitudes)
        folders.setdefault(settings["method"], cell)
        cells.append(keys | _trained(cell) | settings["made_with"])
        if settings["calibration"]:
            fit = read_estimate(cell / "temperature")
            record = {name: json.dumps(v) if isinstance(v, dict) else v for name, v in fit.to_dict().items()}
            temperatures.append(keys | record | {"warnings": " ".join(fit.warnings())})
    first, present = next(iter(found.values())), {_key(settings): settings["label"] for settings in found.values()}
    expected = _expected(folder, [*found.values()])
    missing = [key for key in expected if key not in present]
    about |= {
        "labels": {key[0]: present[key] for key in expected if key in present},
        "planned": list(dict.fromkeys(name for name, *_ in expected)),
        "missing": [f"{m}, seed {s}" + ("" if f is None else f", fold {f}") for m, s, f in missing],
        "split": first["evaluation"]["split"],
        "folds": first.get("folds"),
        "fitted_in": first["calibration"].get("region", "all"),
        "training": {name: first["training"].get(name) for name in TRAINING}
        | {"channels": first["training"]["network_def"].get("channels")},
        "datalists": {"": first["datalist"], **{n: d["datalist"] for n, d in first["evaluate_on"].items()}},
        "class_names": class_names,
        "magnitudes": {name: np.nanmean(of, axis=0).round(5).tolist() for name, of in magnitudes.items()},
    }
    joined = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    results = Results(**joined, cells=pd.DataFrame(cells), temperatures=pd.DataFrame(temperatures), about=about)
    results = replace(_of_finished_runs(results, missing), folders=folders)
    check_same_cases(results)
    return results


def _key(entry: Mapping[str, Any]) -> tuple[str, int, int | None]:
    return entry["method"], entry["seed"], entry.get("fold")


def _evaluations(cell: Path, settings: Mapping[str, Any]) -> Iterator[tuple[dict[str, str], Path]]:
    """Give test set, temperature and folder of each evaluation of a cell."""
    for test_set in ("", *settings["evaluate_on"]):
        place = cell / f"on_{test_set}" if test_set else cell
        yield {"test_set": test_set, "temperature": WITHOUT}, place
        if settings["calibration"]:
            yield {"test_set": test_set, "temperature": WITH}, place / "temperature"


def _trained(folder: Path) -> dict[str, Any]:
    """Return what `history.csv` tells of a training."""
    with reading(folder / "history.csv", "a line for each epoch") as file:
        history = pd.read_csv(file)
        found = {"epochs": len(history), "best_epoch": None, "best_val_dsc": None}
        scores = history.get("val_dsc", pd.Series(dtype=float)).dropna()
        if len(scores):
            best = scores.idxmax()
            found |= {"best_epoch": int(history["epoch"][best]), "best_val_dsc": round(scores[best], 4)}
        return found | {"seconds_per_epoch": round(float(history["seconds"].median()), 1)}


def _expected(folder: Path, found: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, int | None]]:
    """Return method, seed and fold of each planned cell, and of each fold of the finished ones."""
    plan = json.loads((folder / "plan.json").read_text()) if (folder / "plan.json").exists() else []
    folds = [{**settings, "fold": fold} for settings in found for fold in range(settings.get("folds") or 0)]
    return list(dict.fromkeys(_key(entry) for entry in [*plan, *folds, *found]))


def _check_comparable(found: Mapping[Path, Mapping[str, Any]]) -> None:
    """Check that cells differ in nothing but loss, seed and fold, and that a patient is in one fold."""
    protocols: dict[str, tuple[str, Any]] = {}
    fold_of: dict[str, int | None] = {}
    for cell, settings in found.items():
        parts = settings["training"] | settings["evaluation"] | {"overrides": settings["overrides"]}
        protocol = {name: value for name, value in parts.items() if name not in ("loss", "seed")}
        protocol |= {"bundle": settings["bundle"], "folds": settings.get("folds"), "cases": settings.get("cases")}
        protocol["calibration"] = settings["calibration"] or None  # that of all folds comes late
        protocol[f"datalist of fold {settings.get('fold')}"] = settings["datalist"]
        protocol |= {f"datalist of {name}": of["datalist"] for name, of in settings["evaluate_on"].items()}
        for name, value in protocol.items():
            there, known = protocols.setdefault(name, (str(cell), value)) if value is not None else (cell, None)
            if known != value:
                raise InputError(f"{cell}: its {name} differs from that of {there}. Such cells cannot be compared.")
        for patient in settings["patients"].values():
            if fold_of.setdefault(patient, settings.get("fold")) != settings.get("fold"):
                raise InputError(f"{cell}: patient {patient} is in fold {settings['fold']} and in {fold_of[patient]}.")


def _of_finished_runs(results: Results, missing: Sequence[tuple[str, int, int | None]]) -> Results:
    """Return results without runs that lack a fold, on the whole or on a test set."""
    lacking = {key[:2] for key in missing}
    tables = {}
    for name in (*TABLES, "cells", "temperatures"):
        table = getattr(results, name)
        if len(table) and lacking:
            table = table[[run not in lacking for run in zip(table["method"], table["seed"], strict=True)]]
        tables[name] = table
    cases, fits = tables["cases"], tables["temperatures"]
    given = cases["test_set"].unique()
    finished = cases.groupby(["method", "seed", "test_set", "temperature"])["fold"].transform("nunique")
    tables["cases"] = cases = cases[finished == (results.about.get("folds") or 1)]
    if cases.empty:
        raise InputError(f"No run is finished with all its folds. Missing: {'; '.join(results.about['missing'])}.")
    if len(fits) and (fits.groupby(["method", "seed"])["temperature"].nunique() > 1).any():
        raise InputError("Folds of one run have different temperatures. Run compare_losses again to fit one for all.")
    unfinished = [name for name in given if name not in cases["test_set"].unique()]
    return replace(results, **tables, about=results.about | {"unfinished_test_sets": unfinished})


def check_same_cases(results: Results) -> None:
    """Check that all networks of a test set have the same cases with the same ground truth.

    Raises:
        InputError: One lacks a case, or the volumes or the number of voxels of a case differ.
    """
    network = ["method", "seed", "temperature"]
    volumes = [name for name in results.cases if name.startswith("true_volume_")]
    for (test_set, _), table in results.cases.groupby(["test_set", "fold"], sort=False):
        number = table.drop_duplicates(network).shape[0]
        counts = table.groupby("case").size()
        if (counts != number).any():
            name = printable(counts.index[counts != number][0])
            raise InputError(f"{test_set or 'cases.csv'}: case {name} is not in all evaluations, or twice in one.")
        grouped = table.groupby("case")[volumes]
        differs = ((grouped.max() - grouped.min()) > TOLERANCE * grouped.max()).any(axis=1)
        voxels = results.bins[(results.bins["test_set"] == test_set) & (results.bins["region"] == "all")]
        sums = voxels.filter(like="count_").sum(axis=1).groupby(voxels["case"]).nunique()
        wrong = [*differs.index[differs], *sums.index[sums > 1]]
        if wrong:
            raise InputError(
                f"Case {printable(wrong[0])}{f' of {test_set}' * bool(test_set)}: the ground truth differs between "
                "evaluations in its volumes or voxels. Evaluate all on the same labels and grid."
            )


def read_evaluations(folders: Sequence[Path]) -> Results:
    """Read evaluation folders and keep the cases and columns that all have.

    Args:
        folders: The folders. The last parts of their paths that tell them apart are their names.

    Raises:
        InputError: A file is missing or broken; folders have no case in common, or different structures, units,
            patients or ground truths.
    """
    for folder in folders:
        if not (folder / "cases.csv").exists():
            raise InputError(f"{folder}: no cases.csv. Give evaluation folders, or results of compare_losses alone.")
    labels = name_folders(folders)
    read = dict(zip(labels, map(read_evaluation, folders), strict=True))
    first, _, about = read[labels[0]]
    for label, (cases, _, about_other) in read.items():
        about["channels"] = about["channels"] or about_other["channels"]
        structures = [{name for name in table if name.startswith("dsc_")} for table in (cases, first)]
        pairs = {name: (about_other[name], about[name]) for name in about} | {"structures": structures}
        for name, (here, there) in pairs.items():
            if here != there and here != "":
                raise InputError(f"{label}: {name} is {here}, that of {labels[0]} is {there}. They cannot be compared.")
    common = [case for case in first["case"] if all(case in set(cases["case"]) for cases, *_ in read.values())]
    if not common:
        raise InputError(f"No case is in all of {', '.join(labels)}: their names differ.")
    patients, notices = _patients(read, common)
    tables: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    everywhere = set.intersection(*({*bins["region"]} for _, bins, _ in read.values()))
    for label, (cases, bins, _) in read.items():
        keys = {"method": _name(label), "seed": 0, "fold": 0, "test_set": "", "temperature": WITHOUT}
        kept = cases.set_index("case").loc[common].reset_index()
        tables["cases"].append(kept.assign(patient=patients, **keys))
        tables["bins"].append(bins[bins["case"].isin(common) & bins["region"].isin(everywhere)].assign(**keys))
    joined = {name: pd.concat(parts, ignore_index=True, join="inner") for name, parts in tables.items()}
    for kind, kept, found in (
        ("Cases", common, [case for cases, *_ in read.values() for case in cases["case"]]),
        ("Columns", joined["cases"].columns, [name for cases, *_ in read.values() for name in cases]),
    ):
        if names := [printable(name) for name in dict.fromkeys(found) if name not in kept]:
            more = f" and {len(names) - NAMED} more" * (len(names) > NAMED)
            notices.append(f"{kind} that not all have are left out: {', '.join(names[:NAMED])}{more}.")
    if len(folders) > 1 and not any(name.startswith("true_volume_") for name in joined["cases"]):
        notices.append("Only names of cases were compared: label maps do not tell whether ground truths are the same.")
    about |= {"labels": {_name(label): label for label in labels}, "notices": notices}
    by_name = {_name(label): folder for label, folder in zip(labels, folders, strict=True)}
    results = Results(**joined, cells=pd.DataFrame(), temperatures=pd.DataFrame(), about=about, folders=by_name)
    check_same_cases(results)
    return results


def _patients(read: Mapping[str, Any], common: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the patient of each common case, from the folders that know them, and notices."""
    found = pd.DataFrame({label: cases.set_index("case")["patient"].loc[common] for label, (cases, *_) in read.items()})
    known = found.loc[:, found.ne(found.index.to_series(), axis=0).any()]
    if known.empty:
        return list(common), [
            "Each case counts as a patient of its own. If some are of the same patient, intervals are too narrow."
        ]
    differing = known.index[known.nunique(axis=1) > 1]
    if len(differing):
        raise InputError(f"Case {printable(differing[0])} is of different patients in {', '.join(known)}.")
    return known.iloc[:, 0].tolist(), []


def _name(label: str) -> str:
    return label.replace("/", "_")


def name_folders(folders: Sequence[Path]) -> list[str]:
    """Return what tells the folders apart: the last parts of their paths, as few as suffice."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        labels = [printable("/".join(of_folder[-count:])) for of_folder in parts]
        if len({_name(label) for label in labels}) == len(labels):
            return labels
    raise InputError(f"A folder is given twice: {', '.join(map(str, folders))}.")
