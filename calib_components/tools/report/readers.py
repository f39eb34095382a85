"""Readers of a report: results folders of compare_losses, and evaluation folders."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from calib_components.errors import InputError, printable, reading
from calib_components.handlers.calibration import read_estimate
from calib_components.handlers.evaluation_files import Evaluation
from calib_components.tools.compare.cell_settings import CellSettings, read_settings
from calib_components.tools.report.data import COMPACT, SUMS, WITH, WITHOUT, Results, read_compact

TOLERANCE = 2e-6  # of volumes, relative
NAMED = 6  # columns and cases that a notice names


def tables_of(found: Evaluation, **keys: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tables of cases and bins of an evaluation, see `Results`."""
    names, cases = found.cases["case"], found.cases.copy()
    cases.insert(1, "patient", names.map(dict(found.summary["patients"])))
    for i, kind in enumerate(("missed", "spurious"), start=2):
        cases.insert(i, kind, names.map(Counter(entry["case"] for entry in found.summary[kind])))
    bins = [pd.DataFrame({"case": [], "region": []})]
    for region, kinds in found.regions.items():
        if of_cases := kinds.get("top_label_per_case"):
            sums = zip(
                SUMS, (of_cases.count, of_cases.confidence_sum, of_cases.num_correct), strict=True
            )
            wide = {
                f"{name}_{i + 1}": part[:, i] for name, part in sums for i in range(part.shape[1])
            }
            bins.append(pd.DataFrame({"case": names, "region": region, **wide}))
    joined = pd.concat(bins[1:] or bins, ignore_index=True)
    cases, joined = (
        pd.concat([pd.DataFrame(keys, index=t.index), t], axis=1) for t in (cases, joined)
    )
    return cases, joined


def _about(folder: Path, found: Evaluation) -> dict[str, str]:
    """Return what evaluations must have in common to be compared."""
    with reading(folder / "summary.json", "the summary of an evaluation"):
        about = {name: found.summary[name] for name in ("unit", "volume_unit")}
    kind = "{} sigmoid(s)" if found.summary.get("sigmoid") else "a softmax over {} classes"
    return about | {"channels": kind.format(found.summary["channels"]) if found.regions else ""}


def read_cells(folder: Path) -> Results:
    """Read all finished cells of a results folder of compare_losses, or the compact form of one.

    Raises:
        InputError: There is none, a file is broken, or cells differ in more than loss, seed and
            fold.
    """
    if (folder / COMPACT).exists():
        return read_compact(folder)
    found = {
        file.parent: read_settings(file.parent)
        for file in sorted(folder.glob("*/seed*/settings.json"))
    }
    if not found:
        raise InputError(f"{folder}: no finished cell, METHOD/seedN/settings.json, is in it.")
    _check_comparable(found)
    cases, bins, cells, temperatures = [], [], [], []
    folders: dict[str, Path] = {}
    magnitudes: dict[str, list[Any]] = {}
    for cell, settings in found.items():
        keys = {"method": settings.method, "seed": settings.seed, "fold": settings.fold or 0}
        for test_set, temperature in itertools.product(
            ("", *settings.evaluate_on), (WITHOUT, WITH)
        ):
            if temperature == WITH and not settings.calibration:
                continue
            place = cell / f"on_{test_set}" if test_set else cell
            place = place / "temperature" if temperature == WITH else place
            read = Evaluation.read(place)
            of_cases, of_bins = tables_of(read, **keys, test_set=test_set, temperature=temperature)
            cases.append(of_cases)
            bins.append(of_bins)
            if place == cell:
                if (place / "logits.json").exists():  # Fig. 2 of the paper
                    logits = json.loads((place / "logits.json").read_text())["magnitudes"]
                    magnitudes.setdefault(settings.method, []).append(np.array(logits, float))
                about: dict[str, Any] = {
                    **_about(place, read),
                    "class_names": list(read.class_names),
                }
        folders.setdefault(settings.method, cell)
        cells.append(keys | _trained(cell) | settings.made_with)
        if settings.calibration:
            fit = read_estimate(cell / "temperature")
            record = {
                name: json.dumps(v) if isinstance(v, dict) else v
                for name, v in fit.to_dict().items()
            }
            temperatures.append(keys | record)
    first, labels = (
        next(iter(found.values())),
        {settings.method: settings.label for settings in found.values()},
    )
    plan = json.loads((folder / "plan.json").read_text()) if (folder / "plan.json").exists() else []
    planned = [(entry["method"], entry["seed"], entry.get("fold")) for entry in plan]
    planned += [(s.method, s.seed, fold) for s in found.values() for fold in range(s.folds or 0)]
    finished = [(settings.method, settings.seed, settings.fold) for settings in found.values()]
    missing = [run for run in dict.fromkeys(planned) if run not in finished]
    methods = list(dict.fromkeys(method for method, *_ in [*planned, *finished]))
    about |= {
        "labels": {name: labels[name] for name in methods if name in labels},
        "planned": methods,
        "missing": [f"{m}, seed {s}" + ("" if f is None else f", fold {f}") for m, s, f in missing],
        "split": first.evaluation["split"],
        "folds": first.folds,
        "magnitudes": {
            name: np.nanmean(np.stack(of), axis=0).round(5).tolist()
            for name, of in magnitudes.items()
        },
    }
    all_cases, all_bins = (pd.concat(parts, ignore_index=True) for parts in (cases, bins))
    results = Results(
        all_cases, all_bins, pd.DataFrame(cells), pd.DataFrame(temperatures), about, folders
    )
    results = _of_finished_runs(results, {run[:2] for run in missing})
    check_same_cases(results)
    return results


def _check_comparable(found: Mapping[Path, CellSettings]) -> None:
    """Check that cells differ in nothing but loss, seed and fold, and that a patient is in one
    fold.
    """
    for (one, here), (other, there) in itertools.combinations(found.items(), 2):
        if names := there.differences(here):
            differing = ", ".join(names)
            raise InputError(
                f"{other}: its {differing} differs from that of {one}. Such cells cannot be"
                " compared."
            )
        if here.fold != there.fold and (
            both := {*here.patients.values()} & {*there.patients.values()}
        ):
            raise InputError(
                f"{other}: patient {min(both)} is in fold {there.fold} and in {here.fold}."
            )


def _trained(folder: Path) -> dict[str, Any]:
    """Return what `history.csv` tells of a training."""
    with reading(folder / "history.csv", "a line for each epoch") as file:
        history = pd.read_csv(file)
        scores = history.get("val_dsc", pd.Series(dtype=float)).dropna()
        best = scores.idxmax() if len(scores) else None
        found = {
            "epochs": len(history),
            "best_epoch": None if best is None else int(history["epoch"][best]),
        }
        found["best_val_dsc"] = None if best is None else round(scores[best], 4)
        return found | {"seconds_per_epoch": round(float(history["seconds"].median()), 1)}


def _of_finished_runs(results: Results, lacking: set[tuple[str, int]]) -> Results:
    """Return results without runs, of a method and a seed, that lack a fold, on the whole or on a
    test set.
    """
    tables = {name: getattr(results, name) for name in ("cases", "bins", "cells", "temperatures")}
    for name, table in tables.items():
        if not table.empty:
            tables[name] = table[
                [run not in lacking for run in zip(table["method"], table["seed"], strict=True)]
            ]
    cases, fits = tables["cases"], tables["temperatures"]
    finished = cases.groupby(["method", "seed", "test_set", "temperature"])["fold"].transform(
        "nunique"
    )
    tables["cases"] = cases[finished == (results.about["folds"] or 1)]
    if tables["cases"].empty:
        raise InputError(
            "No run is finished with all its folds. Missing:"
            f" {'; '.join(results.about['missing'])}."
        )
    if len(fits) and (fits.groupby(["method", "seed"])["temperature"].nunique() > 1).any():
        raise InputError(
            "Folds of one run have different temperatures. Run compare_losses again to fit one for"
            " all."
        )
    unfinished = [
        name
        for name in cases["test_set"].unique()
        if name not in tables["cases"]["test_set"].unique()
    ]
    return replace(results, **tables, about=results.about | {"unfinished_test_sets": unfinished})


def check_same_cases(results: Results) -> None:
    """Raise `InputError` unless all networks of a test set have the same cases with the same ground
    truth.
    """
    volumes = [name for name in results.cases if name.startswith("true_volume_")]
    for (test_set, _), table in results.cases.groupby(["test_set", "fold"], sort=False):
        number = table.drop_duplicates(["method", "seed", "temperature"]).shape[0]
        counts = table.groupby("case").size()
        if (counts != number).any():
            name = printable(counts.index[counts != number][0])
            raise InputError(
                f"{test_set or 'cases.csv'}: case {name} is not in all evaluations, or twice in"
                " one."
            )
        grouped = table.groupby("case")[volumes]
        differs = ((grouped.max() - grouped.min()) > TOLERANCE * grouped.max()).any(axis=1)
        voxels = results.bins[
            (results.bins["test_set"] == test_set) & (results.bins["region"] == "all")
        ]
        sums = voxels.filter(like="count_").sum(axis=1).groupby(voxels["case"]).nunique()
        if wrong := [*differs.index[differs], *sums.index[sums > 1]]:
            raise InputError(
                f"Case {printable(wrong[0])}{f' of {test_set}' * bool(test_set)}: the ground truth"
                " differs between evaluations in its volumes or voxels. Evaluate all on the same"
                " labels and grid."
            )


def read_evaluations(folders: Sequence[Path]) -> Results:
    """Read evaluation folders and keep the cases and columns that all have.

    Raises:
        InputError: A file is missing or broken; folders have no case in common, or different
            structures, units, patients or ground truths.
    """
    for folder in folders:
        if not (folder / "cases.csv").exists():
            raise InputError(
                f"{folder}: no cases.csv. Give evaluation folders, or results of compare_losses"
                " alone."
            )
    labels = {label.replace("/", "_"): label for label in name_folders(folders)}
    read = dict(zip(labels, map(Evaluation.read, folders), strict=True))
    about: dict[str, Any] = {}
    for label, folder, found in zip(labels.values(), folders, read.values(), strict=True):
        structures = {name for name in found.cases if name.startswith("dsc_")}
        for name, here in {**_about(folder, found), "structures": structures}.items():
            about[name] = there = about.get(name) or here
            if here not in (there, ""):
                first = next(iter(labels.values()))
                raise InputError(
                    f"{label}: {name} is {here}, that of {first} is {there}. They cannot be"
                    " compared."
                )
    del about["structures"]
    keys = {"seed": 0, "fold": 0, "test_set": "", "temperature": WITHOUT}
    tables = [tables_of(found, method=name, **keys) for name, found in read.items()]
    cases, bins = (
        pd.concat(parts, ignore_index=True, join="inner") for parts in zip(*tables, strict=True)
    )
    in_all = cases.groupby("case")["method"].transform("nunique") == len(folders)
    if not in_all.any():
        raise InputError(f"No case is in all of {', '.join(labels.values())}: their names differ.")
    columns = itertools.chain(*(table for table, _ in tables))
    notices = []
    for kind, names in (
        ("Cases", cases["case"][~in_all]),
        ("Columns", (name for name in columns if name not in cases)),
    ):
        if left_out := [*dict.fromkeys(map(printable, names))]:
            more = f" and {len(left_out) - NAMED} more" * (len(left_out) > NAMED)
            notices.append(
                f"{kind} that not all have are left out: {', '.join(left_out[:NAMED])}{more}."
            )
    cases = cases[in_all]
    own = {case: case for case in cases["case"]}
    known = cases[cases["patient"] != cases["case"]].groupby("case")["patient"]
    if (differing := known.nunique() > 1).any():
        raise InputError(
            f"Case {printable(differing.idxmax())} is of different patients in"
            f" {', '.join(labels.values())}."
        )
    cases = cases.assign(patient=cases["case"].map(own | known.first().to_dict()))
    if not len(known):
        notices.append(
            "Each case counts as a patient. If some are of the same patient, intervals are too"
            " narrow."
        )
    if len(folders) > 1 and not any(name.startswith("true_volume_") for name in cases):
        notices.append(
            "Only names of cases were compared: label maps do not tell whether ground truths are"
            " the same."
        )
    everywhere = bins.groupby("region")["method"].transform("nunique") == len(folders)
    bins = bins[everywhere & bins["case"].isin(cases["case"])]
    about |= {"labels": labels, "notices": notices}
    folders_of = dict(zip(labels, folders, strict=True))
    results = Results(cases, bins, pd.DataFrame(), pd.DataFrame(), about, folders_of, read)
    check_same_cases(results)
    return results


def name_folders(folders: Sequence[Path]) -> list[str]:
    """Return what tells the folders apart: the last parts of their paths, as few as suffice."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        labels = [printable("/".join(of_folder[-count:])) for of_folder in parts]
        if len({label.replace("/", "_") for label in labels}) == len(labels):
            return labels
    raise InputError(f"A folder is given twice: {', '.join(map(str, folders))}.")
