"""Planned cells: their commands, the settings they are made with, and checks before anything runs."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from calib_components.errors import InputError, nearest
from calib_components.handlers.fingerprint import (
    EVALUATION,
    LOADING,
    TRAINING,
    differing,
    fingerprint,
    fingerprint_of_cases,
)
from calib_components.tools.compare.cell_settings import (
    CellSettings,
    Condition,
    check_fields,
    is_name,
    read_settings,
)
from calib_components.tools.compare.configs import checked_settings, read_configs
from calib_components.tools.compare.datalists import digest, has_cases, read_patients, read_test_patients
from calib_components.tools.compare.settings import Setting
from calib_components.tools.compare.steps import Step, command
from calib_components.tools.report.results import PlanEntry

__all__ = ["WORK", "PlannedCell", "check_comparable", "check_folds", "check_unchanged", "find_folds", "plan_cell"]

SET_PER_CELL = ("bundle_root", "ckpt_dir", "device", "load_path", "output_dir", "resume", "seed")
# Further options that have no effect on numbers: places, names for display, and who does the work.
WITHOUT_EFFECT = ("dataset_dir", "datalist", "facts_file", "class_names", "file_suffixes", "cache", *LOADING)
# What reaches a temperature, besides the trained network.
CALIBRATION: Mapping[str, tuple[str, ...]] = {"split": (), "region": ()}
# What a further test set has in common with the data of the training.
GEOMETRY: Mapping[str, tuple[str, ...]] = dict.fromkeys(
    ("in_channels", "class_names", "structures", "image_size", "crop_size"), ()
)
WORK = "work"  # folder in the results, unless the user names another
WEIGHTS, CALIBRATED = "model.pt", "model_calibrated.pt"
OWN_FIT = "fit"  # folder in the results of a fold: the fit on its own validation split, see TemperatureCalibration


@dataclass(frozen=True)
class PlannedCell:
    """A cell to run: one setting, one seed and, with cross-validation, one fold.

    Attributes:
        name: Name in messages.
        results: Folder of the small files; it exists once the cell is finished.
        work: Folder of checkpoints, logs and TensorBoard's files.
        steps: The runs that train, fit the temperature, and evaluate without and with it, in this order; of a fold,
            those that need all folds come last.
        settings: What the cell is made with, kept as `settings.json` in both folders.
    """

    name: str
    results: Path
    work: Path
    steps: list[Step]
    settings: CellSettings

    @property
    def of_run(self) -> tuple[str, int]:
        """What the folds of a run have in common: method and seed."""
        return self.settings.method, self.settings.seed

    def unfinished_steps(self) -> list[Step]:
        """Return the steps to run: of a finished cell, those for further test sets that it was not evaluated on.

        Those that need all folds are left out.
        """
        if not self.results.is_dir():
            return [step for step in self.steps if not step.needs_all_folds]
        made = read_settings(self.results)
        lacking = [step for step in self.steps if step.test_set not in ("", *made.evaluate_on)]
        return [step for step in lacking if made.calibration or not step.needs_all_folds]

    def steps_of_all_folds(self) -> list[Step]:
        """Return the steps to run once all folds of the run are finished."""
        is_scaled = self.results.is_dir() and read_settings(self.results).calibration
        return [] if is_scaled else [step for step in self.steps if step.needs_all_folds]

    def progress(self, steps: Sequence[Step]) -> tuple[int, int]:
        """Return how much of some steps is done and how much there is; each epoch of a training counts as a step."""
        log = self.work / "train.log"
        epochs = re.findall(r"Epoch\[(\d+)\]", log.read_text(errors="replace")) if log.is_file() else []
        last = int(epochs[-1]) if epochs else 0
        return (
            sum(last if step.writes is None else step.writes.is_file() for step in steps),
            sum(self.settings.training["max_epochs"] if step.writes is None else 1 for step in steps),
        )

    def entry(self) -> PlanEntry:
        """Return all commands: those that made what is finished, and those that are left."""
        made = read_settings(self.results).commands if self.results.is_dir() else []
        left = [step.shown for step in self.unfinished_steps()]
        return PlanEntry(self.settings, [*made, *left], [step.shown for step in self.steps_of_all_folds()])


def find_folds(folds: int, dataset_dir: Path) -> None:
    """Check that prepared data have exactly so many folds: `datalist_fold0.json` and so on.

    Raises:
        InputError: They have none, or another number.
    """
    found = {file.name for file in dataset_dir.glob("datalist_fold*.json")}
    if found != {f"datalist_fold{fold}.json" for fold in range(folds)}:
        got = ", ".join(sorted(found)) or "none"
        raise InputError(
            f"--folds: expected datalist_fold0.json to datalist_fold{folds - 1}.json in {dataset_dir}, got {got}; "
            f"prepare_data --folds {folds} writes them"
        )


def _list_of_fold(dataset_dir: Path, fold: int) -> Path:
    return dataset_dir / f"datalist_fold{fold}.json"


def plan_cell(
    setting: Setting,
    seed: int,
    bundle: Path,
    dataset_dir: Path,
    out: Path,
    work: Path,
    overrides: Mapping[str, Any],
    fold: int | None = None,
    folds: int | None = None,
    evaluate_on: Mapping[str, Path] | None = None,
) -> PlannedCell:
    """Work out the commands of a cell and what it is made with; nothing is written.

    Args:
        setting: How to train.
        seed: Seed of the training.
        bundle: Folder of the bundle.
        dataset_dir: Folder of the prepared data.
        out: Folder of the results of all cells.
        work: Folder of the work of all cells.
        overrides: Ids of `train.yaml` and `evaluate.yaml` and their values.
        fold: Number of the fold to evaluate, from 0; None without cross-validation.
        folds: Number of folds.
        evaluate_on: Folders of further prepared test sets by their names.

    Raises:
        InputError: An override is unknown or wrong, or there are no data.
    """
    configs = bundle / "configs"
    train_files = [configs / "train.yaml", configs / "losses" / f"{setting.loss}.yaml"]
    evaluate_files = [configs / "train.yaml", configs / "evaluate.yaml"]
    calibrate_files = [configs / "train.yaml", configs / "calibrate.yaml"]
    train, evaluate = read_configs(train_files), read_configs(evaluate_files)
    for name in overrides:
        _check_override(name, train, evaluate)
    if fold is not None:
        overrides = {**overrides, "datalist": str(_list_of_fold(dataset_dir, fold))}
    for_training = {name: value for name, value in overrides.items() if name in train}
    for_evaluation = {name: value for name, value in overrides.items() if name in evaluate}
    own = {**setting.overrides, "seed": seed}
    places = {"bundle_root": str(bundle), "dataset_dir": str(dataset_dir)}
    train.update({**places, **for_training, **own})
    evaluate.update({**places, **for_evaluation})
    training, evaluation = checked_settings(train, TRAINING, configs), checked_settings(evaluate, EVALUATION, configs)
    datalist = Path(str(overrides.get("datalist", dataset_dir / "datalist.json")))
    lists = [datalist] if folds is None else [_list_of_fold(dataset_dir, number) for number in range(folds)]
    # A further test set has its own list and facts, and all its cases for testing are evaluated.
    kept = {name: value for name, value in for_evaluation.items() if name not in ("datalist", "facts_file")}
    further = {
        name: {**kept, "dataset_dir": str(folder), "split": "testing"} for name, folder in (evaluate_on or {}).items()
    }
    settings = CellSettings(
        method=setting.name,
        label=setting.label,
        seed=seed,
        bundle=bundle.resolve().name,
        patients=read_patients(datalist, evaluation.get("split")),
        datalist=digest(datalist),
        training=training,
        evaluation=evaluation,
        overrides={
            name: value
            for name, value in overrides.items()
            if name.rpartition("::")[2] not in WITHOUT_EFFECT
            and not (_shows(name, train, TRAINING) or _shows(name, evaluate, EVALUATION))
        },
        commands=[],
        made_with={},
        fold=fold,
        folds=folds,
        calibration=_calibration(calibrate_files, {**places, **for_training}, lists, evaluation.get("split")),
        evaluate_on={
            name: _test_set(evaluate, evaluate_files, {**places, **options}) for name, options in further.items()
        },
        cases=fingerprint_of_cases(datalist, dataset_dir),
    )
    here, results = work / settings.folder, out / settings.folder
    in_work = {**places, "ckpt_dir": here}
    options = {**in_work, "output_dir": here, "resume": True, **for_training, **own}
    steps = [Step("train", command(train_files, options))]

    def add_fit(name: str, output: Path, weights: str, **options: Any) -> None:
        of_cell = {**in_work, "output_dir": output, "calibrated_path": here / weights}
        fit = command(calibrate_files, {**of_cell, **for_training, **options})
        steps.append(Step(name, fit, output / "temperature.json", needs_all_folds="pool" in options))

    conditions = settings.conditions
    if crossed := fold is not None and settings.calibration != {}:
        if has_cases(datalist, settings.calibration["split"]):
            add_fit("calibrate", here / "eval" / OWN_FIT, "model_own_temperature.pt")
        conditions = sorted(conditions, key=lambda condition: condition.scaled)
    for condition in conditions:
        output = here / "eval" / condition.folder
        if condition == Condition(scaled=True):
            if crossed:
                add_fit("pool", output, CALIBRATED, pool=_own_fits(settings, dataset_dir, out))
            else:
                add_fit("calibrate", output, CALIBRATED)
        name = "evaluate" + "_temperature" * condition.scaled + f"_on_{condition.test_set}" * bool(condition.test_set)
        weights = {"load_path": here / CALIBRATED} if condition.scaled else {}
        options = {**in_work, "output_dir": output, **weights, **further.get(condition.test_set, for_evaluation)}
        evaluate_command = command(evaluate_files, options)
        needs_all_folds = crossed and condition.scaled
        steps.append(Step(name, evaluate_command, output / "summary.json", condition.test_set, needs_all_folds))
    settings = replace(settings, commands=[step.shown for step in steps])
    return PlannedCell(settings.name, results, here, steps, settings)


def _calibration(
    files: Sequence[Path], options: Mapping[str, Any], lists: Sequence[Path], evaluated: Any
) -> dict[str, Any]:
    """Return what the temperature is fitted on; nothing if there are no cases for it, or these are those evaluated."""
    calibrate = read_configs(files)
    calibrate.update(dict(options))
    calibration = fingerprint(calibrate.get(), CALIBRATION)
    check_fields(calibration, ["split"], {"split": ("the name of a split", is_name)}, str(files[-1]))
    split = calibration["split"]
    if split == evaluated or not any(has_cases(datalist, split) for datalist in lists):
        return {}
    return {**calibration, **({"folds": len(lists)} if len(lists) > 1 else {})}


def _own_fits(settings: CellSettings, dataset_dir: Path, out: Path) -> list[str]:
    """Return the folders of the fits of all folds that have cases for it."""
    split, folds = settings.calibration["split"], range(settings.calibration["folds"])
    having = [fold for fold in folds if has_cases(_list_of_fold(dataset_dir, fold), split)]
    return [str(out / replace(settings, fold=fold).folder / OWN_FIT) for fold in having]


def _test_set(own: ConfigParser, files: Sequence[Path], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is recorded of a further test set, and check that it was prepared like the own data."""
    further, folder = read_configs(files), Path(options["dataset_dir"])
    patients = read_test_patients(folder / "datalist.json")
    further.update(dict(options))
    if others := differing(fingerprint(own.get(), GEOMETRY), checked_settings(further, GEOMETRY, files[0].parent)):
        raise InputError(
            f"--evaluate_on: expected data prepared like those of the training, got {folder} with another "
            f"{', '.join(others)}; prepare it with the same options"
        )
    datalist = folder / "datalist.json"
    return {"datalist": digest(datalist), "cases": fingerprint_of_cases(datalist, folder), "patients": patients}


def _shows(name: str, parser: ConfigParser, ids: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether a fingerprint shows the value of an id: it changes with it."""
    if name not in parser:
        return False
    changed = ConfigParser(copy.deepcopy(parser.get()))
    changed[name] = "changed"
    return fingerprint(changed.get(), ids) != fingerprint(parser.get(), ids)


def _check_override(name: str, train: ConfigParser, evaluate: ConfigParser) -> None:
    first = name.partition("::")[0]
    if first in SET_PER_CELL:
        raise InputError(f"--{name}: expected an option of the comparison, got one that it sets for each cell")
    if first == "loss":
        raise InputError(f"--{name}: expected losses as files in configs/losses that --losses names, got a single loss")
    if name not in train and name not in evaluate:
        hint = nearest(name, [*train.get(), *evaluate.get()], "--")
        raise InputError(f"--{name}: expected an id of the bundle's train.yaml or evaluate.yaml, got no such id{hint}")


def check_unchanged(cell: PlannedCell) -> None:
    """Check that what exists of a cell was made with the same settings, and what is missing can be made.

    Raises:
        InputError: It was made with others, the folder of its results is not that of a finished cell, or it has no
            weights to evaluate on a further test set.
    """
    if cell.results.is_dir() and not (cell.results / "settings.json").is_file():
        raise InputError(f"{cell.results}: expected a finished cell, got a folder without settings.json; delete it")
    others = [file for file in cell.work.glob("*") if file.name != "lock"]
    if others and not any((folder / "settings.json").is_file() for folder in (cell.results, cell.work)):
        raise InputError(f"--work: expected a folder of its own, got one with {cell.work}, which is of something else")
    for folder, evaluated in ((cell.results, True), (cell.work, False)):
        if (folder / "settings.json").is_file():
            changes = read_settings(folder).changes(cell.settings, evaluated)
            if changes:
                raise InputError(
                    f"{folder}: expected results of the same settings, got others ({', '.join(changes)}); delete it to "
                    "run the cell again, or choose another --out"
                )
    if cell.results.is_dir() and (cell.unfinished_steps() or cell.steps_of_all_folds()):
        made = read_settings(cell.results)
        lacking = [name for name in made.evaluate_on if name not in cell.settings.evaluate_on]
        if cell.steps_of_all_folds() and lacking:
            raise InputError(
                f"--evaluate_on: expected {lacking[0]}=DIR too, on which {cell.results} was evaluated and will be with "
                "the temperature of all folds, got none"
            )
        for file in (WEIGHTS, CALIBRATED) if made.calibration else (WEIGHTS,):
            if not (cell.work / file).is_file():
                raise InputError(
                    f"{cell.work / file}: expected the weights of a finished cell, to evaluate them with another "
                    f"temperature or test set, got no such file; delete {cell.results} to run the cell again"
                )


def check_folds(cells: Sequence[PlannedCell]) -> None:
    """Check that no fold has the temperature of all folds while one of its run is still to be trained.

    Raises:
        InputError: One has.
    """
    untrained = {cell.of_run: cell for cell in cells if not cell.results.is_dir()}
    for cell in cells:
        is_scaled = cell.results.is_dir() and "folds" in read_settings(cell.results).calibration
        if is_scaled and cell.of_run in untrained:
            raise InputError(
                f"{cell.results}: expected no temperature of all folds before {untrained[cell.of_run].name} is "
                "finished, got one; delete the results of all folds of this run, to evaluate them again"
            )


def check_comparable(cells: Sequence[PlannedCell], out: Path) -> None:
    """Check that cells differ in loss, seed and fold alone: a file in `configs/losses` can change more than the loss.

    With folds, every patient is to be evaluated in one of them.

    Args:
        cells: Planned cells.
        out: Folder of the results, with whose cells, finished or started, they will be compared.

    Raises:
        InputError: They differ in more.
    """
    planned = {folder for cell in cells for folder in (cell.results, cell.work)}
    made = sorted(out.glob("*/seed*/settings.json")) + sorted((out / WORK).glob("*/seed*/settings.json"))
    others = [(str(file.parent), read_settings(file.parent)) for file in made if file.parent not in planned]
    for cell in cells:
        for name, other in ((cells[0].name, cells[0].settings), *others):
            if differences := cell.settings.differences(other):
                raise InputError(f"{cell.name}: expected the same {', '.join(differences)} as {name}, got another")
    fold_of: dict[str, int | None] = {}
    for cell in cells:
        for patient in cell.settings.patients.values():
            if (fold := fold_of.setdefault(patient, cell.settings.fold)) != cell.settings.fold:
                raise InputError(
                    f"--folds: expected every patient in one fold, got {patient} in {fold} and {cell.settings.fold}"
                )
