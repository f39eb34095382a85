"""Reader of the results folder of a comparison: finished cells, or their compact form."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from calib_components.errors import InputError, reading
from calib_tools.report.readers import case_bins, case_table, describe_measures
from calib_workflows.calibrate import read_estimate
from calib_workflows.evaluation_files import Evaluation
from study.compare.cells import CellSettings, Run, name_run, read_plan, read_settings
from study.compare.compact import COMPACT, read_compact
from study.compare.data import SUMS, WITH, WITHOUT, Comparison, check_same_cases


@dataclass
class Tables:
    """The parts of a comparison, as cell after cell is read."""

    cases: list[pd.DataFrame] = field(default_factory=list)
    bins: list[pd.DataFrame] = field(default_factory=list)
    cells: list[dict[str, Any]] = field(default_factory=list)
    temperatures: list[dict[str, Any]] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)


def read_cells(folder: Path) -> Comparison:
    """Read all finished cells of a results folder of compare_losses, or the compact form of one.

    Raises:
        InputError: There is none, a file is broken, or cells differ in more than loss, seed and
            fold.
    """
    if (folder / COMPACT).exists():
        return read_compact(folder)
    files = sorted(folder.glob("*/seed*/settings.json"))
    cells = {file.parent: read_settings(file.parent) for file in files}
    if not cells:
        raise InputError(f"{folder}: no finished cell, METHOD/seedN/settings.json, is in it.")
    _check_comparable(cells)
    tables = Tables()
    for cell, settings in cells.items():
        _read_cell(cell, settings, tables)
    missing, methods = _planned(folder, [*cells.values()])
    about = tables.about | _about(cells, methods)
    about["missing"] = [name_run(*run) for run in missing]
    comparison = Comparison(
        pd.concat(tables.cases, ignore_index=True),
        pd.concat(tables.bins, ignore_index=True),
        pd.DataFrame(tables.cells),
        pd.DataFrame(tables.temperatures),
        about,
        {settings.method: cell for cell, settings in reversed(cells.items())},
    )
    comparison = _select_finished(comparison, {run[:2] for run in missing})
    check_same_cases(comparison)
    return comparison


def _about(cells: Mapping[Path, CellSettings], methods: Sequence[str]) -> dict[str, Any]:
    """Return the labels of the methods, and what all cells have in common."""
    first, *_ = cells.values()
    labels = {settings.method: settings.label for settings in cells.values()}
    return {
        "labels": {name: labels[name] for name in methods if name in labels},
        "planned": [*methods],
        "split": first.evaluation["split"],
        "folds": first.folds,
    }


def _read_cell(cell: Path, settings: CellSettings, tables: Tables) -> None:
    """Add what a finished cell holds."""
    keys = {"method": settings.method, "seed": settings.seed, "fold": settings.fold or 0}
    for place, test_set, temperature in _evaluations(cell, settings):
        evaluation = Evaluation.read(place)
        row = {**keys, "test_set": test_set, "temperature": temperature}
        cases, bins = tables_of(evaluation, row)
        tables.cases.append(cases)
        tables.bins.append(bins)
        if place == cell:
            measures = describe_measures(evaluation)
            tables.about = {**measures, "class_names": list(evaluation.class_names)}
    tables.cells.append(keys | read_history(cell) | settings.made_with)
    if settings.calibration:
        fit = read_estimate(cell / "temperature").to_dict()
        texts = {name: json.dumps(value) for name, value in fit.items() if isinstance(value, dict)}
        tables.temperatures.append(keys | fit | texts)


def tables_of(evaluation: Evaluation, keys: Mapping[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the cases and bins of an evaluation, in the columns of a comparison, after `keys`."""
    cases, bins = case_table(evaluation), []
    for region, of_cases in case_bins(evaluation, cases.index).items():
        wide = {
            f"{name}_{i + 1}": part[:, i].double()
            for name, part in zip(SUMS, vars(of_cases).values(), strict=True)
            for i in range(part.shape[1])
        }
        bins.append(pd.DataFrame({"case": cases.index, "region": region, **wide}))
    return _with_keys(cases.reset_index(), keys), _with_keys(pd.concat(bins), keys)


def _evaluations(cell: Path, settings: CellSettings) -> Iterator[tuple[Path, str, str]]:
    """Yield folder, test set and temperature of the evaluations of a cell."""
    for test_set in ("", *settings.evaluate_on):
        place = cell / f"on_{test_set}" if test_set else cell
        yield place, test_set, WITHOUT
        if settings.calibration:
            yield place / "temperature", test_set, WITH


def _with_keys(table: pd.DataFrame, keys: Mapping[str, Any]) -> pd.DataFrame:
    return pd.concat([pd.DataFrame(keys, index=table.index), table], axis=1)


def _planned(folder: Path, finished: Sequence[CellSettings]) -> tuple[list[Run], list[str]]:
    """Return what is planned and not finished, and the names of all methods in their order."""
    runs: list[Run] = [(cell.method, cell.seed, cell.fold) for cell in finished]
    planned: list[Run] = [
        (entry["method"], entry["seed"], entry.get("fold")) for entry in read_plan(folder)
    ]
    planned += [
        (cell.method, cell.seed, fold) for cell in finished for fold in range(cell.folds or 0)
    ]
    missing = [run for run in dict.fromkeys(planned) if run not in runs]
    return missing, list(dict.fromkeys(method for method, *_ in [*planned, *runs]))


def _check_comparable(cells: Mapping[Path, CellSettings]) -> None:
    """Check that cells differ in nothing but loss, seed and fold, and that a patient is in one
    fold.
    """
    for (one, here), (other, there) in itertools.combinations(cells.items(), 2):
        if names := there.differences(here):
            differing = ", ".join(names)
            raise InputError(
                f"{other}: its {differing} differs from that of {one}. Such cells cannot be"
                " compared."
            )
        both = {*here.patients.values()} & {*there.patients.values()}
        if here.fold != there.fold and both:
            raise InputError(
                f"{other}: patient {min(both)} is in fold {there.fold} and in {here.fold}."
            )


def read_history(folder: Path) -> dict[str, Any]:
    """Return epochs, the best one, its validation DSC and the time of an epoch, of a training."""
    with reading(folder / "history.csv", "a line for each epoch") as file:
        history = pd.read_csv(file)
        found: dict[str, Any] = {"epochs": len(history), "best_epoch": None, "best_val_dsc": None}
        scores = history.get("val_dsc", pd.Series(dtype=float)).dropna()
        if len(scores):
            best = scores.idxmax()
            found["best_epoch"] = int(history["epoch"][best])
            found["best_val_dsc"] = round(scores[best], 4)
        return found | {"seconds_per_epoch": round(float(history["seconds"].median()), 1)}


def _select_finished(comparison: Comparison, lacking: set[tuple[str, int]]) -> Comparison:
    """Return a comparison without runs, of a method and a seed, that lack a fold, on the whole or
    on a test set.
    """
    tables = {
        name: _without_runs(getattr(comparison, name), lacking)
        for name in ("cases", "bins", "cells", "temperatures")
    }
    cases = tables["cases"]
    networks = cases.groupby(["method", "seed", "test_set", "temperature"])
    is_finished = networks["fold"].transform("nunique") == (comparison.about["folds"] or 1)
    tables["cases"] = cases[is_finished]
    if tables["cases"].empty:
        missing = "; ".join(comparison.about["missing"])
        raise InputError(f"No run is finished with all its folds. Missing: {missing}.")
    finished = {*tables["cases"]["test_set"]}
    unfinished = [name for name in cases["test_set"].unique() if name not in finished]
    about = comparison.about | {"unfinished_test_sets": unfinished}
    return replace(comparison, **tables, about=about)


def _without_runs(table: pd.DataFrame, lacking: set[tuple[str, int]]) -> pd.DataFrame:
    if table.empty:
        return table
    runs = zip(table["method"], table["seed"], strict=True)
    return table[[run not in lacking for run in runs]]
