"""Planned cells: the commands of each, and the settings that it is made with.

Nothing is written here.
"""

from __future__ import annotations

import copy
import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from calib_components.errors import InputError, nearest, reading
from calib_tools.bundle_command import bundle_command
from calib_workflows.data.cases import read_lists
from calib_workflows.data.overlap import Shared, find_shared
from calib_workflows.options import check_values, read_as_typed
from calib_workflows.runs import fingerprint_of_cases, fingerprint_of_list
from study.compare.cells import CellSettings
from study.compare.fingerprint import (
    EVALUATION,
    LOADING,
    TRAINING,
    differing,
    fingerprint,
)
from study.compare.settings import Setting

Ids = Mapping[str, tuple[str, ...]]
SET_PER_CELL = (
    "bundle_root",
    "ckpt_dir",
    "device",
    "load_path",
    "loss",
    "output_dir",
    "overwrite",
    "resume",
    "seed",
)
# Further options that have no effect on numbers: places, names for display, and who does the work.
WITHOUT_EFFECT = (
    "dataset_dir",
    "datalist",
    "facts_file",
    "class_names",
    "file_suffixes",
    "cache",
    *LOADING,
)
OF_DATA = ("datalist", "facts_file")
# What reaches a calibrator, besides the trained network.
CALIBRATION: Ids = {"split": (), "region": (), "crop_center": ()}
# What a further test set has in common with the data of the training.
GEOMETRY: Ids = dict.fromkeys(
    ("in_channels", "class_names", "structures", "image_size", "crop_size"), ()
)
# Weights with the calibrator; folder of the evaluation with it
CALIBRATED, SCALED = "model_calibrated.pt", "temperature"


@dataclass(frozen=True)
class Step:
    """One run of the bundle."""

    name: str  # what it does; its log is NAME.log
    command: list[str]  # that of a training resumes if it is run again
    output: str  # a file in the results of the cell that is there once the step is finished

    @property
    def shown(self) -> str:
        """The command as typed in a shell."""
        return shlex.join(self.command)


@dataclass(frozen=True, eq=False)
class PlannedCell:
    """A cell to run: one setting, one seed and, with cross-validation, one fold."""

    settings: CellSettings
    results: Path  # folder of the small files; it exists once the cell is trained and evaluated
    work: Path  # folder of checkpoints, logs and TensorBoard's files
    steps: list[Step]  # the runs that train, fit the calibrator, and evaluate without and with it

    def unfinished(self) -> list[Step]:
        """Return the steps without results."""
        return [step for step in self.steps if not (self.results / step.output).is_file()]


@dataclass(frozen=True)
class Options:
    """The options of the runs of a cell."""

    training: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    fit: Mapping[str, Any]
    further: Mapping[str, Mapping[str, Any]]  # of the evaluation of each further test set


@dataclass(frozen=True)
class Protocol:
    """What all cells of a comparison have in common."""

    bundle: Path
    dataset_dir: Path
    out: Path  # folder of the results of all cells
    work: Path  # folder of the work of all cells
    # Ids of train.yaml and evaluate.yaml and their values
    overrides: Mapping[str, Any] = field(default_factory=dict)
    folds: int | None = None  # None without cross-validation
    # Folders of further prepared test sets
    test_sets: Mapping[str, Path] = field(default_factory=dict)

    def plan_cell(self, setting: Setting, seed: int, fold: int | None = None) -> PlannedCell:
        """Work out the commands of a cell and what it is made with, and check both."""
        train = self._read("train", f"losses/{setting.loss}")
        evaluate = self._read("train", "evaluate")
        overrides = dict(self.overrides)
        if fold is not None:
            overrides["datalist"] = str(self.datalist(fold))
        _check_overrides(overrides, train, evaluate)
        options = self._options(overrides, train, evaluate, {**setting.overrides, "seed": seed})
        settings = self._settings(setting, seed, fold, overrides, options, train, evaluate)
        results, work = self.out / settings.folder, self.work / settings.folder
        steps = self._steps(setting, settings, options)
        return PlannedCell(settings, results, work, steps)

    def _options(
        self,
        overrides: Mapping[str, Any],
        train: ConfigParser,
        evaluate: ConfigParser,
        own: Mapping[str, Any],
    ) -> Options:
        """Return which options each run of the bundle gets, of those that its configs have."""
        training, evaluation = (
            {name: value for name, value in overrides.items() if name in parser}
            for parser in (train, evaluate)
        )
        fit = dict(training)
        if "crop_center" in overrides:
            fit["crop_center"] = overrides["crop_center"]
        # A further test set has its own list and facts, and all its cases for testing are
        # evaluated.
        kept = {name: value for name, value in evaluation.items() if name not in OF_DATA}
        further = {
            name: {**kept, "dataset_dir": str(place)} for name, place in self.test_sets.items()
        }
        return Options({**training, **own}, evaluation, fit, further)

    def _settings(
        self,
        setting: Setting,
        seed: int,
        fold: int | None,
        overrides: Mapping[str, Any],
        options: Options,
        train: ConfigParser,
        evaluate: ConfigParser,
    ) -> CellSettings:
        """Return what a cell is made with."""
        datalist = self.datalist(fold)
        content = fingerprint_of_list(datalist)
        training = _fingerprint(train, {**self._places, **options.training}, TRAINING)
        evaluation = _fingerprint(evaluate, {**self._places, **options.evaluation}, EVALUATION)
        split = evaluation["split"]
        return CellSettings(
            method=setting.name,
            label=setting.label,
            seed=seed,
            bundle=self.bundle.resolve().name,
            datalist=content,
            patients=_evaluated_patients(datalist, split, self.dataset_dir, content),
            training=training,
            evaluation=evaluation,
            overrides={
                name: value
                for name, value in overrides.items()
                if name.rpartition("::")[2] not in WITHOUT_EFFECT
                and not _is_shown(name, train, evaluate)
            },
            fold=fold,
            folds=self.folds,
            calibration=self._calibration(options.fit, split, fold),
            evaluate_on={
                name: self._test_set(evaluate, set_options)
                for name, set_options in options.further.items()
            },
            cases=fingerprint_of_cases(datalist, self.dataset_dir),
        )

    def _steps(self, setting: Setting, settings: CellSettings, options: Options) -> list[Step]:
        """Return the runs that train, fit the calibrator, and evaluate without and with it."""
        work = self.work / settings.folder
        train = {"output_dir": work, "resume": True, "overwrite": True, **options.training}
        step = self._step(settings, "train", f"losses/{setting.loss}", "history.csv", train)
        steps = [step, *self._evaluations(settings, "evaluate", "", options)]
        if not settings.calibration:
            return steps
        given = {"calibrator": SCALED, "calibrated_path": work / CALIBRATED, **options.fit}
        output = f"{SCALED}/temperature.json"
        steps.append(self._step(settings, "calibrate", "calibrate", output, given))
        scaled = replace(
            options,
            evaluation={"load_path": work / CALIBRATED, **options.evaluation},
            further={
                name: {"load_path": work / CALIBRATED, **set_options}
                for name, set_options in options.further.items()
            },
        )
        return steps + self._evaluations(settings, "evaluate_temperature", SCALED, scaled)

    def _step(
        self,
        settings: CellSettings,
        name: str,
        config: str,
        output: str,
        options: Mapping[str, Any],
    ) -> Step:
        work = self.work / settings.folder
        places = {**self._places, "ckpt_dir": work, "output_dir": (work / "eval" / output).parent}
        command = bundle_command(self._files("train", config), {**places, **options})
        return Step(name, command, output)

    def _evaluations(
        self, settings: CellSettings, name: str, folder: str, options: Options
    ) -> list[Step]:
        """Return the runs that evaluate, on the data of the training and on further test sets."""
        output = str(Path(folder, "summary.json"))
        steps = [self._step(settings, name, "evaluate", output, options.evaluation)]
        for test_set, set_options in options.further.items():
            output = str(Path(f"on_{test_set}", folder, "summary.json"))
            given = {**set_options, "split": "testing"}
            step = f"{name}_on_{test_set}"
            steps.append(self._step(settings, step, "evaluate", output, given))
        return steps

    @property
    def _places(self) -> dict[str, Any]:
        return {"bundle_root": str(self.bundle), "dataset_dir": str(self.dataset_dir)}

    @property
    def _folds(self) -> Sequence[int | None]:
        return [None] if self.folds is None else range(self.folds)

    def datalist(self, fold: int | None) -> Path:
        """Return the list of prepared cases, or that of a fold."""
        if fold is not None:
            return self.dataset_dir / f"datalist_fold{fold}.json"
        return Path(str(self.overrides.get("datalist", self.dataset_dir / "datalist.json")))

    def seen_cases(self, test_set: str) -> list[Shared]:
        """Return cases of a further test set whose patients are called as in the training; its
        volumes are an error.
        """
        folder = self.test_sets[test_set]
        lists = [read_lists(self.datalist(fold), self.dataset_dir) for fold in self._folds]
        seen = [
            item
            for listed in lists
            for split in ("training", "validation")
            for item in listed[split]
        ]
        shared = find_shared(read_lists(folder / "datalist.json", folder)["testing"], seen)
        for pair in shared:
            if pair.is_volume:
                raise InputError(
                    f"--evaluate_on: {folder} has cases of the training: {pair}. Leave them out."
                )
        return shared

    def _files(self, *names: str) -> list[Path]:
        return [self.bundle / "configs" / f"{name}.yaml" for name in names]

    def _read(self, *names: str) -> ConfigParser:
        parser = ConfigParser()
        with reading(self._files(*names)[-1], "a configuration of the bundle"):
            parser.read_config([str(file) for file in self._files(*names)])
        return parser

    def _calibration(
        self, options: Mapping[str, Any], evaluated: str, fold: int | None
    ) -> dict[str, Any]:
        """Return what the calibrator of a fold is fitted on; nothing if there are no cases for it,
        or these are evaluated.
        """
        parser = self._read("train", "calibrate")
        parser.update({**self._places, **options})
        calibration = fingerprint(parser.get(), CALIBRATION)
        split = calibration["split"]
        has_cases = bool(read_patients(self.datalist(fold), split))
        return calibration if split != evaluated and has_cases else {}

    def _test_set(self, own: ConfigParser, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is recorded of a further test set, and check that it was prepared like the
        own data.
        """
        folder = Path(options["dataset_dir"])
        datalist = folder / "datalist.json"
        here = _fingerprint(self._read("train", "evaluate"), {**self._places, **options}, GEOMETRY)
        if others := differing(fingerprint(own.get(), GEOMETRY), here):
            raise InputError(
                f"--evaluate_on: {folder} and the data of the training differ in"
                f" {', '.join(others)}. Prepare it with the same options."
            )
        if not (patients := read_patients(datalist, "testing")):
            raise InputError(
                f"{datalist} has no cases for testing. Prepare the data with --fractions 0,0,1."
            )
        cases = fingerprint_of_cases(datalist, folder)
        return {"datalist": fingerprint_of_list(datalist), "cases": cases, "patients": patients}


def _fingerprint(parser: ConfigParser, options: Mapping[str, Any], ids: Ids) -> dict[str, Any]:
    """Return the fingerprint of a run with options, whose values are checked."""
    with reading("options", "values that the bundle can use"):  # MONAI wraps what goes wrong
        defaults = dict(parser.get())
        parser.update(dict(options))
        read_as_typed(parser)
        settings = fingerprint(parser.get(), ids)
        parser["device"] = "cpu"  # planning uses no GPU; a run checks its own device
        check_values(parser, [defaults])
    return settings


def _check_overrides(
    overrides: Mapping[str, Any], train: ConfigParser, evaluate: ConfigParser
) -> None:
    for name in overrides:
        if name.partition("::")[0] in SET_PER_CELL:
            raise InputError(
                f"--{name} is set for each cell. Losses are files in configs/losses, named by"
                " --losses."
            )
        if name not in train and name not in evaluate:
            hint = nearest(name, [*train.get(), *evaluate.get()], "--")
            raise InputError(
                f"--{name} is not an id of the bundle's train.yaml or evaluate.yaml{hint}"
            )


def _is_shown(name: str, train: ConfigParser, evaluate: ConfigParser) -> bool:
    """Return whether a fingerprint shows the value of an id: it changes with it."""
    for parser, ids in ((train, TRAINING), (evaluate, EVALUATION)):
        if name in parser:
            changed = ConfigParser(copy.deepcopy(parser.get()))
            changed[name] = "changed"
            if fingerprint(changed.get(), ids) != fingerprint(parser.get(), ids):
                return True
    return False


def read_patients(datalist: Path, split: str) -> dict[str, str]:
    """Return the patient of each case of a split."""
    return {item["case"]: item["patient"] for item in read_lists(datalist, Path())[split]}


@cache  # all cells have few lists; their content is an argument, since a list may change
def _evaluated_patients(datalist: Path, split: str, folder: Path, content: str) -> dict[str, str]:
    """Return the patient of each case of a split, none of whom is trained on or, for another split,
    validated on.
    """
    listed = read_lists(datalist, folder)
    if not listed[split]:
        raise InputError(f"{datalist} has no cases for {split}.")
    others = {"training", "validation"} - {split} if split != "training" else set[str]()
    for other in sorted(others):
        for shared in find_shared(listed[split], listed[other]):
            text = f"{datalist}: {shared}, in {split} and in {other}."
            if other == "training" or not shared.is_volume:
                raise InputError(text)
            logging.getLogger(__name__).warning(text)
    return read_patients(datalist, split)
