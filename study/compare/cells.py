"""Files of a comparison that say what was done: `settings.json` of a cell, and `plan.json` with
`commands.sh`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from calib_components.errors import reading, writing
from study.compare.fingerprint import differing

Run = tuple[str, int, int | None]  # method, seed and fold
HEAD = (
    "# Run these in the folder in which compare_losses was started. To choose a GPU, add"
    " --device=cuda:1.\n"
)


@dataclass(frozen=True)
class CellSettings:
    """What a cell is made with: the content of its `settings.json`."""

    method: str  # name of the setting
    label: str  # its name in tables and figures
    seed: int
    bundle: str  # name of its folder
    datalist: str  # SHA-256 of the list of prepared cases
    patients: dict[str, str]  # of each case that is evaluated
    training: dict[str, Any]  # fingerprint
    evaluation: dict[str, Any]  # fingerprint
    # Options whose effect the fingerprints do not show, as they were given
    overrides: dict[str, Any]
    commands: list[str] = field(default_factory=list)  # those that trained and evaluated
    # Versions and device, once the cell is finished
    made_with: dict[str, str] = field(default_factory=dict)
    fold: int | None = None  # that is evaluated, from 0; None without cross-validation
    folds: int | None = None  # how many
    # Split and region that the calibrator is fitted on; empty without a calibrator.
    calibration: dict[str, Any] = field(default_factory=dict)
    # Further test sets by name, each with a `datalist`, `patients` and `cases` as those of the
    # training's data.
    evaluate_on: dict[str, dict[str, Any]] = field(default_factory=dict)
    # Fingerprint of what the prepared cases hold; None where it was not recorded
    cases: str | None = None

    @property
    def name(self) -> str:
        """Name in messages."""
        return name_run(self.method, self.seed, self.fold)

    @property
    def folder(self) -> str:
        """Its folder in those of the results and the work."""
        return cell_folder(self.method, self.seed, self.fold)

    def differences(self, other: CellSettings) -> list[str]:
        """Return the settings that keep two cells from being compared, or a cell from being
        continued.

        Cells may differ in their seed, their fold and, unless they are of the same method, their
        loss.
        """
        return differing(self._compared_with(other), other._compared_with(self))

    def _compared_with(self, other: CellSettings) -> dict[str, Any]:
        """Return what the two have to have in common, as far as it is known of both."""
        parts = (self.training, self.evaluation, self.overrides)
        names = {name for part in parts for name in part}
        compared: dict[str, Any] = {name: [part.get(name) for part in parts] for name in names}
        compared |= {"seed": None, "bundle": self.bundle, "folds": self.folds}
        if self.method != other.method:
            compared["loss"] = None
        if self.fold == other.fold:
            compared["datalist"] = self.datalist
        if None not in (self.cases, other.cases):
            compared["cases"] = self.cases
        compared["calibration"] = self.calibration
        return compared | self._compared_test_sets(other)

    def _compared_test_sets(self, other: CellSettings) -> dict[str, Any]:
        """Return what is known of both of each further test set."""
        compared = {}
        for name in self.evaluate_on.keys() & other.evaluate_on.keys():
            here, there = self.evaluate_on[name], other.evaluate_on[name]
            known = [key for key in here if None not in (here.get(key), there.get(key))]
            compared[f"test set {name}"] = {key: here[key] for key in known}
        return compared


def name_run(method: str, seed: int, fold: int | None) -> str:
    """Return what a cell is called in messages."""
    name = f"{method}, seed {seed}"
    return name if fold is None else f"{name}, fold {fold}"


def cell_folder(method: str, seed: int, fold: int | None) -> str:
    """Return the folder of a cell in those of the results and the work."""
    folder = f"{method}/seed{seed}"
    return folder if fold is None else f"{folder}_fold{fold}"


def write_settings(settings: CellSettings, folder: Path) -> None:
    """Write `settings.json`."""
    with writing(folder / "settings.json") as file:
        file.write_text(json.dumps(asdict(settings), indent=1) + "\n")


def read_settings(folder: Path) -> CellSettings:
    """Read `settings.json`."""
    with reading(folder / "settings.json", "the settings of a finished cell") as file:
        return CellSettings(**json.loads(file.read_text(encoding="utf-8")))


def read_plan(folder: Path) -> list[dict[str, Any]]:
    """Return the cells in `plan.json`; none without this file."""
    if not (folder / "plan.json").exists():
        return []
    with reading(folder / "plan.json", "the plan of a comparison") as file:
        return json.loads(file.read_text(encoding="utf-8"))


def add_to_plan(entries: Sequence[dict[str, Any]], folder: Path) -> None:
    """Add cells to `plan.json`, which tells the report what to expect, and their commands to
    `commands.sh`.

    They replace all cells of the same methods and seeds, which may have been planned with other
    folds. An entry has a `method`, a `seed`, perhaps a `fold`, and `commands`.
    """
    planned = {_key(entry) for entry in entries}
    runs = {key[:2] for key in planned}
    present = read_plan(folder)
    kept = [entry for entry in present if _key(entry) in planned or _key(entry)[:2] not in runs]
    plan = {_key(entry): entry for entry in [*kept, *entries]}
    files = {"plan.json": json.dumps([*plan.values()], indent=1), "commands.sh": _script(plan)}
    for name, text in files.items():
        with writing(folder / name) as unfinished:
            unfinished.write_text(text.rstrip() + "\n")


def _script(plan: Mapping[Run, Mapping[str, Any]]) -> str:
    """Return the commands of all cells."""
    blocks = [HEAD]
    for key, entry in plan.items():
        blocks.append("\n".join([f"# {name_run(*key)}", *entry["commands"], ""]))
    return "\n".join(blocks)


def _key(entry: Mapping[str, Any]) -> Run:
    return entry["method"], entry["seed"], entry.get("fold")
