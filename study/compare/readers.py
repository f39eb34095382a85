"""Reader of the results folder of a comparison: finished cells, or their compact form."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from calib_components.errors import InputError, reading
from calib_components.handlers.calibration import read_estimate
from calib_components.handlers.evaluation_files import Evaluation
from calib_components.tools.report.data import WITH, WITHOUT, Results
from calib_components.tools.report.readers import about_evaluation, check_same_cases, tables_of
from study.compare.cells import CellSettings, read_settings
from study.compare.compact import COMPACT, read_compact


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
                magnitudes.setdefault(settings.method, []).append(read.magnitudes)
                about: dict[str, Any] = {
                    **about_evaluation(place, read),
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
