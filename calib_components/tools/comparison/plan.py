"""Planned cells: their commands, the settings they are made with, and checks before anything runs."""

from __future__ import annotations

import copy
import difflib
import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from calib_components.errors import InputError, reading
from calib_components.fingerprint import EVALUATION, TRAINING, fingerprint
from calib_components.tools.comparison.results import CellSettings, read_json, read_settings
from calib_components.tools.comparison.settings import Setting

__all__ = ["PlannedCell", "check_comparable", "check_unchanged", "plan_cell"]

SET_PER_CELL = ("bundle_root", "ckpt_dir", "device", "load_path", "output_dir", "resume", "seed")
# Further options that have no effect on numbers: places, names for display, and who does the work.
WITHOUT_EFFECT = ("dataset_dir", "datalist", "num_workers", "class_names", "file_suffixes")


@dataclass(frozen=True)
class PlannedCell:
    """A cell to run: one setting and one seed.

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


def plan_cell(
    setting: Setting, seed: int, bundle: Path, dataset_dir: Path, out: Path, work: Path, overrides: Mapping[str, Any]
) -> PlannedCell:
    """Work out the commands of a cell and what it is made with; nothing is written.

    Args:
        setting: How to train.
        seed: Seed of the training.
        bundle: Folder of the bundle.
        dataset_dir: Folder of the prepared data; its `facts.yaml`, if any, is read after the bundle's `train.yaml`.
        out: Folder of the results of all cells.
        work: Folder of the work of all cells.
        overrides: Ids of `train.yaml` and `evaluate.yaml` and their values.

    Raises:
        InputError: An override is unknown or wrong, or there is no data.
    """
    configs, facts = bundle / "configs", dataset_dir / "facts.yaml"
    base = [configs / "train.yaml", *([facts] if facts.is_file() else [])]
    train_files = [*base, configs / "losses" / f"{setting.loss}.yaml"]
    evaluate_files = [*base, configs / "evaluate.yaml"]
    train, evaluate = _parser(train_files), _parser(evaluate_files)
    for name in overrides:
        _check_override(name, train, evaluate)
    for_training = {name: value for name, value in overrides.items() if name in train}
    for_evaluation = {name: value for name, value in overrides.items() if name in evaluate}
    own = {**setting.overrides, "seed": seed}
    train.update({**for_training, **own})
    evaluate.update(for_evaluation)
    if type(max_epochs := train.get("max_epochs")) is not int or max_epochs < 1:
        raise InputError(f"--max_epochs: expected a whole number of at least 1, got {max_epochs!r}")
    training, evaluation = fingerprint(train.get(), TRAINING), fingerprint(evaluate.get(), EVALUATION)
    if not _is_size(training.get("crop_size")):
        got = f"{train.get('image_size')} and {train.get('crop_size')}"
        raise InputError(f"--image_size, --crop_size: expected two numbers each, such as [144,144], got {got}")

    datalist = Path(str(overrides.get("datalist", dataset_dir / "datalist.json")))
    if not datalist.is_file():
        raise InputError(f"{datalist}: expected the list of prepared cases, got no such file; run prepare_data first")
    splits, split = read_json(datalist), evaluation.get("split")
    if not splits.get(split):
        raise InputError(f"{datalist}: expected cases to evaluate, got no cases in split {split!r}")

    name = f"{setting.name}/seed{seed}"
    places = {"bundle_root": bundle, "dataset_dir": dataset_dir, "ckpt_dir": work / name}
    to_train = _command(train_files, {**places, "output_dir": work / name, "resume": True, **for_training, **own})
    to_evaluate = _command(evaluate_files, {**places, "output_dir": work / name / "eval", **for_evaluation})
    settings = CellSettings(
        method=setting.name,
        label=setting.label,
        seed=seed,
        bundle=bundle.resolve().name,
        datalist=hashlib.sha256(datalist.read_bytes()).hexdigest(),
        patients={item["case"]: item.get("patient", item["case"]) for item in splits[split]},
        training=training,
        evaluation=evaluation,
        overrides={
            name: value
            for name, value in overrides.items()
            if name.rpartition("::")[2] not in WITHOUT_EFFECT
            and not (_shows(name, train, TRAINING) or _shows(name, evaluate, EVALUATION))
        },
        commands=[_shown(to_train), _shown(to_evaluate)],
        made_with={},
    )
    return PlannedCell(f"{setting.name}, seed {seed}", out / name, work / name, to_train, to_evaluate, settings)


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(size) is int for size in value)


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
        close = difflib.get_close_matches(name, [*train.get(), *evaluate.get()], 1)
        hint = f"; did you mean --{close[0]}?" if close else ""
        raise InputError(f"--{name}: expected an id of the bundle's train.yaml or evaluate.yaml, got no such id{hint}")


def _parser(files: Sequence[Path]) -> ConfigParser:
    for file in files:
        with reading(file):
            content = ConfigParser.load_config_file(file)
        if not isinstance(content, dict):
            raise InputError(f"{file}: expected ids and their values, such as num_classes: 3, got {content!r:.50}")
    parser = ConfigParser()
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


def check_comparable(cells: Sequence[PlannedCell]) -> None:
    """Check that cells differ in loss and seed alone: a file in `configs/losses` can change more than the loss.

    Raises:
        InputError: They differ in more.
    """
    for cell in cells[1:]:
        if differences := cell.settings.differences(cells[0].settings):
            raise InputError(f"{cell.name}: not comparable with {cells[0].name}: {', '.join(differences)} differs")
