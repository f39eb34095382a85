"""The files of a results folder, written and read: `settings.json` and `history.csv` of each cell, and `plan.json`.

A *method* is one setting of one loss. It is trained with one or more seeds; each of these is a *cell*, a folder
`METHOD/seedN`. The value of a method on a case is the mean over its seeds.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calib_components.errors import InputError, reading
from calib_components.fingerprint import EVALUATION, TRAINING, fingerprint
from calib_components.handlers.evaluation import read_cases
from calib_components.tools.comparison.published import PUBLISHED, STRUCTURES
from calib_components.tools.comparison.statistics import Array, mean_of_defined

__all__ = [
    "CellSettings",
    "FinishedCell",
    "Method",
    "Results",
    "add_to_plan",
    "collect_history",
    "read_json",
    "read_results",
    "read_settings",
    "write_history",
    "write_settings",
]

METRICS = "calib_components.metrics"


@dataclass(frozen=True)
class CellSettings:
    """What a cell is made with: the content of its `settings.json`.

    Attributes:
        method: Name of the method.
        label: Name of the method in tables and figures.
        seed: Seed of the training.
        bundle: Name of the bundle's folder.
        datalist: SHA-256 of the list of prepared cases.
        patients: The patient of each case that is evaluated.
        training: Fingerprint of the training.
        evaluation: Fingerprint of the evaluation.
        overrides: Options whose effect the fingerprints do not show, as they were given.
        commands: The commands that train and evaluate.
        made_with: Versions and device, once the cell is finished.
    """

    method: str
    label: str
    seed: int
    bundle: str
    datalist: str
    patients: dict[str, str]
    training: dict[str, Any]
    evaluation: dict[str, Any]
    overrides: dict[str, Any]
    commands: list[str]
    made_with: dict[str, str]

    def changes(self, other: CellSettings, evaluated: bool) -> list[str]:
        """Return what another run of the same cell would do differently.

        Args:
            other: Settings of the other run.
            evaluated: Whether the evaluation counts, too.
        """
        parts = ("training", "evaluation", "overrides") if evaluated else ("training", "overrides")
        data = ["the data"] if self.datalist != other.datalist else []
        return _unique(data, *(_differing(getattr(self, part), getattr(other, part)) for part in parts))

    def differences(self, other: CellSettings) -> list[str]:
        """Return what keeps two cells from being compared: all that differs except the loss and the seed."""
        here, there = ({**cell.training, "loss": None, "seed": None} for cell in (self, other))
        return _unique(
            [name for name in ("bundle", "datalist") if getattr(self, name) != getattr(other, name)],
            _differing(self.evaluation, other.evaluation),
            _differing(here, there),
            _differing(self.overrides, other.overrides),
        )


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the settings that differ; if some are plain, those alone, since others are derived from them."""
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    plain = [name for name in names if "_target_" not in json.dumps([one.get(name), other.get(name)])]
    return plain or names


def _unique(*lists: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))


def write_settings(settings: CellSettings, folder: Path) -> None:
    """Write `settings.json`, with one setting per line."""
    texts = {
        name: _lines(value) if name in ("training", "evaluation", "commands") else json.dumps(value)
        for name, value in asdict(settings).items()
    }
    lines = ",\n".join(f" {json.dumps(name)}: {text}" for name, text in texts.items())
    _replace_text(folder / "settings.json", f"{{\n{lines}\n}}\n")


def _lines(value: dict[str, Any] | list[Any]) -> str:
    if isinstance(value, list):
        return "[" + ",".join(f"\n  {json.dumps(part)}" for part in value) + "\n ]"
    return "{" + ",".join(f"\n  {json.dumps(name)}: {json.dumps(part)}" for name, part in value.items()) + "\n }"


def read_settings(folder: Path) -> CellSettings:
    """Read `settings.json`, also that of version 0.1.0, which holds whole configurations.

    Raises:
        InputError: The file is missing or broken.
    """
    file = folder / "settings.json"
    content = read_json(file)
    if "train" in content:  # version 0.1.0
        with reading(file):
            train = _with_names_of_today({**content["train"], "crop_size": content["crop_size"]})
            content["training"] = fingerprint(train, TRAINING)
            content["evaluation"] = fingerprint(_with_names_of_today(content["evaluate"]), EVALUATION)
        content = {"overrides": {}, "commands": [], "made_with": {}, **content}
    names = [field.name for field in fields(CellSettings)]
    if lacking := [name for name in names if name not in content]:
        raise InputError(f"{file}: expected {', '.join(names)}, got no {', '.join(lacking)}")
    return CellSettings(**{name: content[name] for name in names})


def _with_names_of_today(config: dict[str, Any]) -> dict[str, Any]:
    """Rename the metrics in a configuration of version 0.1.0; they compute the same as today's."""
    config = json.loads(json.dumps(config).replace(f"{METRICS}.DiceMetric", f"{METRICS}.DSCMetric"))
    validate = config["validate"]
    metrics = validate["additional_metrics"]
    if "cece" in metrics:  # an evaluation: CalibrationMetric computes ECE and CECE
        del metrics["cece"]
        validate["metrics"]["ece"]["_target_"] = f"{METRICS}.CalibrationMetric"
        metrics["logits"] = metrics.pop("logit_magnitude")
    return config


def collect_history(work: Path) -> list[list[Any]]:
    """Collect the history of a training from TensorBoard's files: a header, and a row for each epoch.

    The columns are the epoch, its seconds, and what was validated. A resumed training has several files; for an epoch
    in more than one of them, the latest counts.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows: dict[int, dict[str, Any]] = {}
    for path in sorted(work.glob("events.out.tfevents.*")):
        events = EventAccumulator(str(path)).Reload()
        for tag in events.Tags()["scalars"]:
            before = events.FirstEventTimestamp()
            for event in events.Scalars(tag):
                seconds = round(event.wall_time - before, 2)
                rows.setdefault(event.step, {}).update({"seconds": seconds, tag: event.value})
                before = event.wall_time
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    return [["epoch", *columns], *([epoch, *(rows[epoch].get(c, "") for c in columns)] for epoch in sorted(rows))]


def write_history(rows: Sequence[Sequence[Any]], folder: Path) -> None:
    """Write `history.csv` from the rows of `collect_history`."""
    with open(folder / "history.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


@dataclass(frozen=True, eq=False)
class FinishedCell:
    """A cell that was trained and evaluated.

    Attributes:
        folder: Folder that it was read from.
        settings: Its `settings.json`.
        cases: Names of the cases.
        columns: `(cases,)` for each column of `cases.csv`, NaN where a measure is undefined.
    """

    folder: Path
    settings: CellSettings
    cases: list[str]
    columns: dict[str, Array]

    @classmethod
    def read(cls, folder: Path) -> FinishedCell:
        """Read a cell.

        Raises:
            InputError: A file is missing or broken.
        """
        settings = read_settings(folder)
        if not settings.made_with:
            raise InputError(f"{folder / 'settings.json'}: expected versions and device in made_with, got none")
        return cls(folder, settings, *read_cases(folder))

    @property
    def structures(self) -> list[str]:
        """Names of the structures that are segmented."""
        return [name.removeprefix("dsc_") for name in self.columns if name.startswith("dsc_")]

    def values(self, measure: str) -> Array:
        """Return a column, `(cases,)`; for `dsc` and `hd95`, the mean over the structures that have a value."""
        if measure in self.columns:
            return self.columns[measure]
        return mean_of_defined([self.columns[f"{measure}_{name}"] for name in self.structures])

    @property
    def complete(self) -> NDArray[np.bool_]:
        """Whether no structure of a case is missed or spurious, `(cases,)`."""
        scored = np.array([~np.isnan(self.columns[f"dsc_{name}"]) for name in self.structures])
        measured = np.array([~np.isnan(self.columns[f"hd95_{name}"]) for name in self.structures])
        return (scored == measured).all(0)

    @property
    def history(self) -> list[dict[str, str]]:
        """Rows of `history.csv`, one per epoch."""
        with reading(self.folder / "history.csv") as file:
            if rows := list(csv.DictReader(file.read_text().splitlines())):
                return rows
            raise ValueError("no epoch in it")

    def picture(self, name: str) -> bytes | None:
        """Return the picture of the case `name` (best, median or worst); None where it was not kept."""
        file = self.folder / "cases" / f"{name}.png"
        return file.read_bytes() if file.is_file() else None


@dataclass(frozen=True, eq=False)
class Method:
    """All finished cells of one setting.

    Attributes:
        name: Name of its folder.
        label: Name in tables and figures.
        cells: One for each seed.
    """

    name: str
    label: str
    cells: list[FinishedCell]

    def values(self, measure: str) -> Array:
        """Return a column or measure as the mean over seeds, `(cases,)`, for means over cases."""
        return mean_of_defined([cell.values(measure) for cell in self.cells])

    def comparable(self, measure: str) -> Array:
        """As `values`, but without HD95 where a structure is missed or spurious; for differences and ranks."""
        values = self.values(measure)
        if not measure.startswith("hd95"):
            return values
        return np.where(np.all([cell.complete for cell in self.cells], axis=0), values, np.nan)


@dataclass(frozen=True, eq=False)
class Results:
    """All finished cells of a results folder.

    Attributes:
        methods: Methods in the order of the plan.
        missing: Planned cells that are not finished, such as "svls, seed 1".
    """

    methods: list[Method]
    missing: list[str]

    @cached_property
    def first(self) -> FinishedCell:
        """A cell, for what all have in common."""
        return self.methods[0].cells[0]

    @property
    def split(self) -> str:
        """Split that the cells were evaluated on: testing, validation or training."""
        return self.first.settings.evaluation["split"]

    @property
    def patients(self) -> list[str]:
        """The patient of each case."""
        return [self.first.settings.patients[case] for case in self.first.cases]

    @property
    def dataset(self) -> str | None:
        """The paper's data set with the same structures, whatever the images are; None if there is none."""
        return next((name for name, structures in STRUCTURES.items() if structures == self.first.structures), None)

    @property
    def published(self) -> dict[str, tuple[float, float, float, float]]:
        """What the paper reports for the test cases of this data set, by method; nothing for another split."""
        return PUBLISHED[self.dataset] if self.dataset is not None and self.split == "testing" else {}


def read_results(folder: str | os.PathLike) -> Results:
    """Read all finished cells of a results folder.

    Raises:
        InputError: There is none, a file is broken, or cells differ in more than loss and seed.
    """
    folder = Path(folder)
    plan = _read_plan(folder)
    cells: dict[str, list[FinishedCell]] = {planned["method"]: [] for planned in plan}
    for settings_file in sorted(folder.glob("*/seed*/settings.json")):
        cell = FinishedCell.read(settings_file.parent)
        cells.setdefault(cell.settings.method, []).append(cell)
    methods = [Method(name, found[0].settings.label, found) for name, found in cells.items() if found]
    if not methods:
        raise InputError(f"{folder}: expected METHOD/seedN/settings.json, got no finished cell")
    first = methods[0].cells[0]
    finished = [cell for method in methods for cell in method.cells]
    folders: dict[tuple[str, int], Path] = {}
    for cell in finished:
        other = folders.setdefault((cell.settings.method, cell.settings.seed), cell.folder)
        if other != cell.folder:
            raise InputError(f"{cell.folder}: expected each method and seed once, got them in {other} too")
        differing = cell.settings.differences(first.settings)
        differing += ["list of cases in cases.csv"] if cell.cases != first.cases else []
        differing += ["columns of cases.csv"] if cell.columns.keys() != first.columns.keys() else []
        if differing:
            raise InputError(f"{cell.folder}: not comparable with {first.folder}: {', '.join(differing)} differs")
    done = {(cell.settings.method, cell.settings.seed) for cell in finished}
    missing = [f"{p['method']}, seed {p['seed']}" for p in plan if (p["method"], p["seed"]) not in done]
    return Results(methods, missing)


def add_to_plan(cells: Sequence[CellSettings], folder: Path) -> None:
    """Add cells to `plan.json`, which tells the report what to expect, and their commands to `commands.sh`."""
    by_cell = {(entry["method"], entry["seed"]): entry for entry in _read_plan(folder)}
    for cell in cells:
        entry = {"method": cell.method, "seed": cell.seed, "commands": cell.commands}
        by_cell[cell.method, cell.seed] = entry
    _replace_text(folder / "plan.json", json.dumps(list(by_cell.values()), indent=1) + "\n")
    lines = ["# Run these in the folder in which compare_losses was started. To choose a GPU, add --device=cuda:1.\n"]
    lines += [f"# {e['method']}, seed {e['seed']}\n" + "\n".join(e["commands"]) + "\n" for e in by_cell.values()]
    (folder / "commands.sh").write_text("\n".join(lines))


def _read_plan(folder: Path) -> list[dict[str, Any]]:
    file = folder / "plan.json"
    return read_json(file) if file.is_file() else []


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: It is missing or broken.
    """
    with reading(file):
        return json.loads(file.read_text())


def _replace_text(file: Path, text: str) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(file)
