"""A results folder: all finished cells together, and `plan.json`, which says what to expect.

A *method* is one setting of one loss. It is trained with one or more seeds; each of these is a *run*. A run is one
*cell*, the folder `METHOD/seedN`, or with cross-validation a cell for each fold, the folders `METHOD/seedN_foldK`,
whose cases are joined; on a further test set, where the networks of all folds have the same cases, a run is their mean.
The value of a method on a case is the mean over its seeds.

A network is evaluated under several *conditions*: on the split that is compared and on further test sets, without and
with its temperature. Where nothing else is said, it is the split that is compared, without a temperature.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calib_components.errors import InputError, reading, writing
from calib_components.tools.compare.cell_settings import (
    OWN,
    CellSettings,
    Condition,
    cell_name,
    check_fields,
    is_count,
    is_name,
    is_texts,
    read_json,
)
from calib_components.tools.compare.cells import CellEvaluation, FinishedCell, read_cell
from calib_components.tools.report.measured import Comparison, Method, Run, same_cases
from calib_components.tools.report.published import PUBLISHED, STRUCTURES
from calib_components.tools.report.statistics import Array, mean_of_defined

__all__ = [
    "PlanEntry",
    "Results",
    "TrainedMethod",
    "TrainedRun",
    "add_to_plan",
    "check_plan",
    "read_plan",
    "read_results",
]

COMMANDS = "commands.sh"
ABOUT_COMMANDS = "# Run these in the folder in which compare_losses was started"  # its first line


@dataclass(frozen=True, eq=False)
class TrainedRun(Run):
    """One method trained with one seed, evaluated under one condition.

    Attributes:
        evaluations: What was measured, for each cell.
        cells: Its cell, or one for each fold.
        condition: What its networks are evaluated on.
    """

    evaluations: Sequence[CellEvaluation]
    cells: list[FinishedCell]
    condition: Condition

    @property
    def settings(self) -> CellSettings:
        """Settings of its first cell."""
        return self.cells[0].settings


class RepeatedRun(TrainedRun):
    """A run on a further test set, where the network of every fold is evaluated on the same cases: their mean."""

    @property
    def cases(self) -> list[str]:
        """Names of the cases."""
        return self.evaluations[0].cases

    @property
    def patients(self) -> list[str]:
        """The patient of each case."""
        return [self.evaluations[0].patients[case] for case in self.cases]

    @cached_property
    def columns(self) -> dict[str, Array]:
        """`(cases,)` for each column of `cases.csv`, the mean over the networks that have a value."""
        tables = [evaluation.columns for evaluation in self.evaluations]
        return {name: mean_of_defined([table[name] for table in tables]) for name in tables[0]}

    @property
    def networks(self) -> list[Run]:
        """The network of each fold."""
        return [Run([evaluation]) for evaluation in self.evaluations]

    def values(self, measure: str) -> Array:
        """Return a column, `(cases,)`, or a measure, of which each network has a value of its own before the mean."""
        return mean_of_defined([network.values(measure) for network in self.networks])

    def comparable(self, measure: str) -> Array:
        """As `values`, but the DSC of a network is 1 where there is nothing to find and it finds nothing."""
        return mean_of_defined([network.comparable(measure) for network in self.networks])

    @property
    def finds_nothing(self) -> NDArray[np.bool_]:
        """Whether there is nothing to find in a case and a network finds nothing, `(cases,)`."""
        return np.any([network.finds_nothing for network in self.networks], axis=0)

    @property
    def found_in_one(self) -> tuple[float, float]:
        """How many structures a network misses and adds on average."""
        missed, spurious = super().found_in_one
        return missed / len(self.evaluations), spurious / len(self.evaluations)

    @property
    def complete(self) -> NDArray[np.bool_]:
        """Whether no network misses a structure of a case, or adds one, `(cases,)`."""
        return np.all([network.complete for network in self.networks], axis=0)


@dataclass(frozen=True, eq=False)
class TrainedMethod(Method):
    """All finished runs of one setting; its name is that of its folder."""

    runs: Sequence[TrainedRun]

    @property
    def cells(self) -> list[FinishedCell]:
        """The cells of all runs."""
        return [cell for run in self.runs for cell in run.cells]

    @property
    def evaluations(self) -> list[CellEvaluation]:
        """What was measured, for each cell of all runs."""
        return [evaluation for run in self.runs for evaluation in run.evaluations]

    @property
    def variants(self) -> dict[str, Method]:
        """The method without and with its temperature, as far as it was evaluated so."""
        both = {"": self.at(OWN), " + T": self.at(Condition(scaled=True))}
        return {suffix: method for suffix, method in both.items() if method.runs}

    def at(self, condition: Condition) -> TrainedMethod:
        """Return the method under another condition, without the runs that were not evaluated under it."""
        found = [run.cells for run in self.runs if all(condition in cell.evaluations for cell in run.cells)]
        return replace(self, runs=[_run(cells, condition) for cells in found])


def _run(cells: list[FinishedCell], condition: Condition = OWN) -> TrainedRun:
    kind = RepeatedRun if condition.test_set else TrainedRun
    return kind([cell.evaluations[condition] for cell in cells], cells, condition)


@dataclass(frozen=True, eq=False)
class Results(Comparison):
    """All finished runs of a results folder.

    Attributes:
        methods: Methods in the order of the plan.
        planned: Names of all methods that are planned or finished.
        missing: Cells that are not finished, such as "svls, seed 1". A run that lacks a fold is left out.
    """

    methods: Sequence[TrainedMethod]
    planned: list[str]
    missing: list[str]

    def at(self, condition: Condition) -> Results:
        """Return the results under another condition, without the methods that were not evaluated under it."""
        methods = [method.at(condition) for method in self.methods]
        return replace(self, methods=[method for method in methods if method.runs])

    @property
    def test_sets(self) -> list[str]:
        """Names of the further test sets on which a run was evaluated, with the networks of all its folds."""
        return [name for name in self._given_test_sets if self.at(Condition(name)).methods]

    @property
    def unfinished_test_sets(self) -> list[str]:
        """Names of the further test sets on which only some folds of every run were evaluated yet."""
        return [name for name in self._given_test_sets if not self.at(Condition(name)).methods]

    @property
    def _given_test_sets(self) -> list[str]:
        sets = (cell.settings.evaluate_on for method in self.methods for cell in method.cells)
        return list(dict.fromkeys(name for names in sets for name in names))

    @property
    def first(self) -> TrainedRun:
        """A run, for what all have in common."""
        return self.methods[0].runs[0]

    @property
    def split(self) -> str:
        """Split that the cells were evaluated on: testing, validation or training."""
        return "testing" if self.first.condition.test_set else self.first.settings.evaluation["split"]

    @property
    def dataset(self) -> str | None:
        """The paper's data set with the same structures, whatever the images are; None if there is none."""
        return next((name for name, structures in STRUCTURES.items() if structures == self.first.structures), None)

    @property
    def published(self) -> dict[str, tuple[float, float, float, float]]:
        """What the paper reports for the test cases of this data set, by method; nothing for another condition."""
        same = self.split == "testing" and self.first.condition == OWN
        return PUBLISHED[self.dataset] if self.dataset is not None and same else {}


def read_results(folder: str | os.PathLike) -> Results:
    """Read all finished runs of a results folder.

    Raises:
        InputError: There is none, a file is broken, or cells differ in more than loss, seed and fold.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: expected the folder of a comparison, got no such folder")
    cells = [read_cell(file.parent) for file in sorted(folder.glob("*/seed*/settings.json"))]
    _check_comparable(cells)
    plan = read_plan(folder)
    expected = [(entry["method"], entry["seed"], entry.get("fold")) for entry in plan]
    for cell in cells:
        folds: Sequence[int | None] = [None] if cell.settings.folds is None else range(cell.settings.folds)
        expected += [(cell.settings.method, cell.settings.seed, fold) for fold in folds]
    expected = list(dict.fromkeys(expected))
    found = {(cell.settings.method, cell.settings.seed, cell.settings.fold): cell for cell in cells}
    missing = [key for key in expected if key not in found]
    incomplete = {key[:2] for key in missing}
    planned = list(dict.fromkeys(method for method, _, _ in expected))
    methods: list[TrainedMethod] = []
    for name in planned:
        seeds = sorted({seed for method, seed, _ in found if method == name and (method, seed) not in incomplete})
        runs = [_run([found[key] for key in sorted(found, key=_by_fold) if key[:2] == (name, seed)]) for seed in seeds]
        if runs:
            label = runs[0].settings.label
            if same := [method.name for method in methods if method.label == label]:
                raise InputError(f"{folder}: expected a label for each method, got {label} for {same[0]} and {name}")
            methods.append(TrainedMethod(name, label, runs))
    if not methods:
        raise InputError(f"{folder}: expected METHOD/seedN/settings.json, got no finished cell, or none of all folds")
    return Results(methods, planned, [cell_name(*key) for key in missing])


def _by_fold(key: tuple[str, int, int | None]) -> int:
    return key[2] or 0


def _check_comparable(cells: Sequence[FinishedCell]) -> None:
    """Check that cells have the same protocol, and those of one fold the same cases; a patient is in one fold only."""
    of_fold: dict[int | None, FinishedCell] = {}
    of_cases: dict[tuple[Condition, int | None], CellEvaluation] = {}
    fold_of: dict[str, int | None] = {}
    scaled: dict[tuple[str, int], FinishedCell] = {}
    recorded: list[FinishedCell] = []  # cells that say what their prepared cases hold
    for cell in cells:
        first = of_fold.setdefault(cell.settings.fold, cell)
        recorded += [cell] if cell.settings.cases is not None else []
        for other in (cells[0], first, *recorded[:1]):
            _refuse(cell.folder, other.folder, cell.settings.differences(other.settings))
        for condition, evaluation in cell.evaluations.items():
            fold = None if condition.test_set else cell.settings.fold
            earlier = of_cases.setdefault((condition, fold), evaluation)
            for reference in (cells[0].evaluations[OWN], earlier):
                _refuse(evaluation.folder, reference.folder, _other_form(evaluation, reference))
            if (evaluation.cases, evaluation.patients) != (earlier.cases, earlier.patients):
                _refuse(evaluation.folder, earlier.folder, ["list of cases in cases.csv"])
            if changed := sorted({*evaluation.cases} - same_cases(evaluation, earlier)):
                _refuse(evaluation.folder, earlier.folder, [f"ground truth of {changed[0]}"])
        run = (cell.settings.method, cell.settings.seed)
        of_run = scaled.setdefault(run, cell) if cell.temperature is not None else cell
        fits = [None if one.temperature is None else one.temperature.to_dict() for one in (of_run, cell)]  # without NaN
        if fits[0] != fits[1]:
            raise InputError(
                f"{cell.folder}: expected one temperature for all folds, got another one than {of_run.folder}"
            )
        for patient in cell.settings.patients.values():
            if fold_of.setdefault(patient, cell.settings.fold) != cell.settings.fold:
                raise InputError(
                    f"{cell.folder}: expected every patient in one fold, got {patient} in fold {fold_of[patient]} too"
                )


def _other_form(one: CellEvaluation, other: CellEvaluation) -> list[str]:
    """Return in what the files of two evaluations differ that keeps them out of one table."""
    differing = ["columns of cases.csv"] if one.columns.keys() != other.columns.keys() else []
    differing += ["class_names of logits.json"] if one.class_names != other.class_names else []
    differing += ["bins of calibration.json"] if one.bins.count.shape != other.bins.count.shape else []
    return differing + (["regions of calibration.json"] if one.regions.keys() != other.regions.keys() else [])


def _refuse(folder: Path, other: Path, differing: Sequence[str]) -> None:
    if differing:
        raise InputError(f"{folder}: expected the same {', '.join(differing)} as {other}, got another")


class PlanEntry(NamedTuple):
    """A planned cell.

    Attributes:
        settings: Its settings.
        commands: Its commands, without those that follow.
        of_all_folds: Commands to run once all folds of the run are finished.
    """

    settings: CellSettings
    commands: list[str]
    of_all_folds: list[str]


def add_to_plan(cells: Sequence[PlanEntry], folder: Path) -> None:
    """Add cells to `plan.json`, which tells the report what to expect, and their commands to `commands.sh`.

    They replace all cells of the same methods and seeds, which may have been planned with other folds.

    Raises:
        InputError: The plan that is there is broken, or a file cannot be written.
    """
    planned = {(cell.settings.method, cell.settings.seed, cell.settings.fold) for cell in cells}
    runs = {key[:2] for key in planned}
    present = {(entry["method"], entry["seed"], entry.get("fold")): entry for entry in read_plan(folder)}
    by_cell = {key: entry for key, entry in present.items() if key in planned or key[:2] not in runs}
    for settings, commands, of_all_folds in cells:
        fold = {} if settings.fold is None else {"fold": settings.fold}
        later = {"of_all_folds": of_all_folds} if of_all_folds else {}
        entry = {"method": settings.method, "seed": settings.seed, **fold, "commands": commands, **later}
        by_cell[settings.method, settings.seed, settings.fold] = entry
    with writing(folder / "plan.json") as file:
        file.write_text(json.dumps(list(by_cell.values()), indent=1) + "\n")
    lines = [f"{ABOUT_COMMANDS}. To choose a GPU, add --device=cuda:1.\n"]
    for part, about in (("commands", ""), ("of_all_folds", ", with one temperature for all folds")):
        lines += [
            f"# {cell_name(*key)}{about}\n" + "\n".join(entry[part]) + "\n"
            for key, entry in by_cell.items()
            if entry.get(part)
        ]
    with writing(folder / COMMANDS) as file:
        file.write_text("\n".join(lines))


def check_plan(folder: Path) -> None:
    """Check the plan that is there, if any, and that the commands, which are replaced, are those of a plan.

    Raises:
        InputError: The plan is broken, or there are commands of somebody else.
    """
    read_plan(folder)
    if (file := folder / COMMANDS).is_file():
        with reading(file, "commands of compare_losses"):
            content = file.read_text(encoding="utf-8", errors="replace")
        if not content.startswith(ABOUT_COMMANDS):
            raise InputError(
                f"{file}: expected commands of compare_losses or nothing, got others; choose another --out"
            )


def read_plan(folder: Path) -> list[dict[str, Any]]:
    """Read `plan.json`: the `method`, the `seed`, the `fold` if any and the `commands` of each cell, and those
    `of_all_folds`; none without it.

    Raises:
        InputError: The file is broken.
    """
    file = folder / "plan.json"
    if not file.exists():
        return []
    plan = read_json(file)
    if not isinstance(plan, list):
        raise InputError(f"{file}: expected a list of cells, got {plan!r:.60}")
    for entry in plan:
        check_fields(entry, ["method", "seed", "commands"], PLANNED, str(file))
    return plan


PLANNED = {
    "method": ("a name of one line", is_name),
    "seed": ("a whole number of at least 0", is_count),
    "fold": ("a whole number of at least 0", is_count),
    "commands": ("a list of commands", is_texts),
    "of_all_folds": ("a list of commands", is_texts),
}
