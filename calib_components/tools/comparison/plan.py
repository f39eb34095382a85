"""Planned cells: their commands, the settings they are made with, and checks before anything runs."""

from __future__ import annotations

import copy
import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from calib_components.bundle import check_values
from calib_components.errors import InputError, error_line, nearest, reading
from calib_components.fingerprint import EVALUATION, TRAINING, fingerprint
from calib_components.tools.comparison.cell_settings import CellSettings, is_name, read_json, read_settings
from calib_components.tools.comparison.settings import Setting

__all__ = ["PlannedCell", "check_comparable", "check_unchanged", "find_folds", "plan_cell"]

SET_PER_CELL = ("bundle_root", "ckpt_dir", "device", "load_path", "output_dir", "resume", "seed")
# Further options that have no effect on numbers: places, names for display, and who does the work.
WITHOUT_EFFECT = ("dataset_dir", "datalist", "facts_file", "num_workers", "class_names", "file_suffixes")


@dataclass(frozen=True)
class PlannedCell:
    """A cell to run: one setting, one seed and, with cross-validation, one fold.

    Attributes:
        name: Name in messages.
        results: Folder of the small files; it exists once the cell is finished.
        work: Folder of checkpoints, logs and TensorBoard's files.
        train: Command that trains; run again, it resumes.
        evaluate: Command that evaluates the trained network.
        settings: What the cell is made with, kept as `settings.json` in both folders.
    """

    name: str
    results: Path
    work: Path
    train: list[str]
    evaluate: list[str]
    settings: CellSettings

    @property
    def max_epochs(self) -> int:
        """Number of epochs to train."""
        return self.settings.training["max_epochs"]

    @property
    def epoch(self) -> int:
        """The last epoch in its log."""
        log = self.work / "train.log"
        epochs = re.findall(r"Epoch\[(\d+)\]", log.read_text(errors="replace")) if log.is_file() else []
        return int(epochs[-1]) if epochs else 0


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

    Raises:
        InputError: An override is unknown or wrong, or there are no data.
    """
    configs = bundle / "configs"
    train_files = [configs / "train.yaml", configs / "losses" / f"{setting.loss}.yaml"]
    evaluate_files = [configs / "train.yaml", configs / "evaluate.yaml"]
    train, evaluate = _parser(train_files), _parser(evaluate_files)
    for name in overrides:
        _check_override(name, train, evaluate)
    if fold is not None:
        overrides = {**overrides, "datalist": str(dataset_dir / f"datalist_fold{fold}.json")}
    for_training = {name: value for name, value in overrides.items() if name in train}
    for_evaluation = {name: value for name, value in overrides.items() if name in evaluate}
    own = {**setting.overrides, "seed": seed}
    places = {"bundle_root": str(bundle), "dataset_dir": str(dataset_dir)}
    train.update({**places, **for_training, **own})
    evaluate.update({**places, **for_evaluation})
    training, evaluation = _settings(train, TRAINING, configs), _settings(evaluate, EVALUATION, configs)
    datalist = Path(str(overrides.get("datalist", dataset_dir / "datalist.json")))
    settings = CellSettings(
        method=setting.name,
        label=setting.label,
        seed=seed,
        bundle=bundle.resolve().name,
        patients=_read_patients(datalist, evaluation.get("split")),
        datalist=hashlib.sha256(datalist.read_bytes()).hexdigest(),
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
    )
    here = work / settings.folder
    to_train = _command(
        train_files, {**places, "ckpt_dir": here, "output_dir": here, "resume": True, **for_training, **own}
    )
    to_evaluate = _command(evaluate_files, {**places, "ckpt_dir": here, "output_dir": here / "eval", **for_evaluation})
    settings = replace(settings, commands=[_shown(to_train), _shown(to_evaluate)])
    return PlannedCell(settings.name, out / settings.folder, here, to_train, to_evaluate, settings)


def _settings(parser: ConfigParser, ids: Mapping[str, tuple[str, ...]], configs: Path) -> dict[str, Any]:
    """Return the fingerprint of a run, and check the values of its options."""
    try:
        settings = fingerprint(parser.get(), ids)
        parser["device"] = "cpu"  # planning uses no GPU; a run checks its own device
        check_values(parser)
        return settings
    except InputError:
        raise
    except Exception as error:  # MONAI wraps what goes wrong
        reason = error_line(error) or f"{configs}: expected settings that can be worked out, got {error}"
        raise InputError(reason) from error


def _read_patients(datalist: Path, split: Any) -> dict[str, str]:
    """Return the patient of each case that is evaluated, none of whom is trained on."""
    if not datalist.is_file():
        raise InputError(f"{datalist}: expected the list of prepared cases, got no such file; run prepare_data first")
    splits = read_json(datalist)
    for name in ("training", split):
        cases = splits.get(name) if isinstance(splits, dict) else None
        if not isinstance(cases, list) or not cases:
            raise InputError(f"{datalist}: expected cases for {name}, got none")
        for item in cases:
            if not isinstance(item, dict) or not (is_name(item.get("case")) and is_name(item.get("patient"))):
                raise InputError(f"{datalist}: expected a case and its patient for {name}, got {item!r:.60}")
    patients = {item["case"]: item["patient"] for item in splits[split]}
    if len(patients) < len(splits[split]):
        raise InputError(f"{datalist}: expected every case for {split} once, got one of them twice")
    if split != "training" and (both := {item["patient"] for item in splits["training"]} & {*patients.values()}):
        raise InputError(f"{datalist}: expected other patients for {split} than for training, got {min(both)} for both")
    return patients


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


def _parser(files: Sequence[Path]) -> ConfigParser:
    for file in files:
        with reading(file):
            content = ConfigParser.load_config_file(file)
        if not isinstance(content, dict):
            raise InputError(f"{file}: expected ids and their values, such as num_classes: 3, got {content!r:.50}")
    parser = ConfigParser()
    with reading(files[-1], f"ids that can be joined with those of {files[0].name}"):
        parser.read_config([str(file) for file in files])
    return parser


def _command(files: Sequence[Path], options: Mapping[str, Any]) -> list[str]:
    config_file = "[" + ",".join(repr(str(file)) for file in files) + "]"
    typed = [f"--{name}={_typed(value)}" for name, value in options.items()]
    return ["python", "-m", "monai.bundle", "run", f"--config_file={config_file}", *typed]


def _typed(value: Any) -> str:
    """Return a value as it is typed for Fire: text that Fire would read as something else, such as a number, quoted."""
    text = str(value)
    return repr(text) if isinstance(value, str | Path) and DefaultParseValue(text) != text else text


def _shown(command: Sequence[str]) -> str:
    """Return the command as typed in a shell, with double quotes where they suffice."""
    plain = re.compile(r'[^"$`\\!]*')
    return " ".join(
        word if shlex.quote(word) == word else f'"{word}"' if plain.fullmatch(word) else shlex.quote(word)
        for word in command
    )


def check_unchanged(cell: PlannedCell) -> None:
    """Check that what exists of a cell was made with the same settings.

    Raises:
        InputError: It was made with others, or the folder of its results is not that of a finished cell.
    """
    if cell.results.is_dir() and not (cell.results / "settings.json").is_file():
        raise InputError(f"{cell.results}: expected a finished cell, got a folder without settings.json; delete it")
    for folder, evaluated in ((cell.results, True), (cell.work, False)):
        if (folder / "settings.json").is_file():
            changes = read_settings(folder).changes(cell.settings, evaluated)
            if changes:
                raise InputError(
                    f"{folder}: made with other settings ({', '.join(changes)}); delete it to run the cell again, or "
                    "choose another --out"
                )


def check_comparable(cells: Sequence[PlannedCell], out: Path) -> None:
    """Check that cells differ in loss, seed and fold alone: a file in `configs/losses` can change more than the loss.

    With folds, every patient is to be evaluated in one of them.

    Args:
        cells: Planned cells.
        out: Folder of the results, whose finished cells they will be compared with.

    Raises:
        InputError: They differ in more.
    """
    planned = {cell.results for cell in cells}
    finished = [file.parent for file in sorted(out.glob("*/seed*/settings.json")) if file.parent not in planned]
    others = [(str(folder), read_settings(folder)) for folder in finished]
    for cell in cells:
        for name, other in ((cells[0].name, cells[0].settings), *others):
            if differences := cell.settings.differences(other):
                raise InputError(f"{cell.name}: not comparable with {name}: {', '.join(differences)} differs")
    fold_of: dict[str, int | None] = {}
    for cell in cells:
        for patient in cell.settings.patients.values():
            if (fold := fold_of.setdefault(patient, cell.settings.fold)) != cell.settings.fold:
                raise InputError(
                    f"--folds: expected every patient in one fold, got {patient} in {fold} and {cell.settings.fold}"
                )
