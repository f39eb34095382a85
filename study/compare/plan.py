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

from calib_components.bundle import check_values, read_as_typed
from calib_components.data.cases import read_lists
from calib_components.data.overlap import Shared, find_shared
from calib_components.errors import InputError, nearest, reading
from calib_components.handlers.fingerprint import (
    EVALUATION,
    LOADING,
    TRAINING,
    differing,
    fingerprint,
    fingerprint_of_cases,
    fingerprint_of_list,
)
from calib_components.tools.bundle_command import bundle_command
from study.compare.cells import CellSettings
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
# What reaches a calibrator, besides the trained network.
CALIBRATION: Ids = {"split": (), "region": (), "crop_center": ()}
# What a further test set has in common with the data of the training.
GEOMETRY: Ids = dict.fromkeys(
    ("in_channels", "class_names", "structures", "image_size", "crop_size"), ()
)
# Weights with the calibrator; folder of the evaluation with it; of a fold, that of the fit on its
# own validation split.
CALIBRATED, SCALED, OWN_FIT = "model_calibrated.pt", "temperature", "fit"


@dataclass(frozen=True)
class Step:
    """One run of the bundle."""

    name: str  # what it does; its log is NAME.log
    command: list[str]  # that of a training resumes if it is run again
    output: str  # a file in the results of the cell that is there once the step is finished
    needs_all_folds: bool = False  # a calibrator that is fitted to all folds of a run

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

    def unfinished(self, of_all_folds: bool | None = None) -> list[Step]:
        """Return the steps without results: those that need all folds, the others, or both."""
        steps = [step for step in self.steps if of_all_folds in (None, step.needs_all_folds)]
        return [step for step in steps if not (self.results / step.output).is_file()]


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
        datalist = self.datalist(fold)
        overrides = (
            dict(self.overrides) if fold is None else {**self.overrides, "datalist": str(datalist)}
        )
        train, evaluate = (
            self._read("train", f"losses/{setting.loss}"),
            self._read("train", "evaluate"),
        )
        _check_overrides(overrides, train, evaluate)
        for_training = {name: value for name, value in overrides.items() if name in train}
        for_evaluation = {name: value for name, value in overrides.items() if name in evaluate}
        for_fit = for_training | {
            name: overrides[name] for name in ("crop_center",) if name in overrides
        }
        own = {**setting.overrides, "seed": seed}
        training = _settings(train, {**self._places, **for_training, **own}, TRAINING)
        evaluation = _settings(evaluate, {**self._places, **for_evaluation}, EVALUATION)
        # A further test set has its own list and facts, and all its cases for testing are
        # evaluated.
        kept = {
            name: value
            for name, value in for_evaluation.items()
            if name not in ("datalist", "facts_file")
        }
        further = {
            name: {**kept, "dataset_dir": str(place)} for name, place in self.test_sets.items()
        }
        listed = fingerprint_of_list(datalist)
        settings = CellSettings(
            method=setting.name,
            label=setting.label,
            seed=seed,
            bundle=self.bundle.resolve().name,
            datalist=listed,
            patients=_evaluated_patients(datalist, evaluation["split"], self.dataset_dir, listed),
            training=training,
            evaluation=evaluation,
            overrides={
                name: value
                for name, value in overrides.items()
                if name.rpartition("::")[2] not in WITHOUT_EFFECT
                and not (_shows(train, name, TRAINING) or _shows(evaluate, name, EVALUATION))
            },
            fold=fold,
            folds=self.folds,
            calibration=self._calibration(for_fit, evaluation["split"]),
            evaluate_on={
                name: self._test_set(evaluate, options) for name, options in further.items()
            },
            cases=fingerprint_of_cases(datalist, self.dataset_dir),
        )
        work, results = self.work / settings.folder, self.out / settings.folder

        def step(
            name: str, config: str, output: str, options: Mapping[str, Any], late: bool = False
        ) -> Step:
            options = {
                **self._places,
                "ckpt_dir": work,
                "output_dir": (work / "eval" / output).parent,
                **options,
            }
            return Step(name, bundle_command(self._files("train", config), options), output, late)

        def evaluations(name: str, folder: str, late: bool, **weights: Path) -> list[Step]:
            steps = [
                step(
                    name,
                    "evaluate",
                    str(Path(folder, "summary.json")),
                    {**weights, **for_evaluation},
                    late,
                )
            ]
            for test_set, options in further.items():
                output, options = (
                    str(Path(f"on_{test_set}", folder, "summary.json")),
                    {**weights, **options},
                )
                steps.append(
                    step(
                        f"{name}_on_{test_set}",
                        "evaluate",
                        output,
                        {**options, "split": "testing"},
                        late,
                    )
                )
            return steps

        options = {"output_dir": work, "resume": True, "overwrite": True, **for_training, **own}
        steps = [
            step("train", f"losses/{setting.loss}", "history.csv", options),
            *evaluations("evaluate", "", False),
        ]
        if settings.calibration:
            in_folds = fold is not None
            lists = {replace(settings, fold=one).folder: self.datalist(one) for one in self._folds}
            having = [
                one
                for one, cases in lists.items()
                if read_patients(cases, settings.calibration["split"])
            ]
            if settings.folder in having:
                fit = f"{OWN_FIT if in_folds else SCALED}/temperature.json"
                path = work / ("model_own_temperature.pt" if in_folds else CALIBRATED)
                steps.append(
                    step("calibrate", "calibrate", fit, {"calibrated_path": path, **for_fit})
                )
            if in_folds:
                pool = [str(self.out / one / OWN_FIT) for one in having]
                options = {"calibrated_path": work / CALIBRATED, "pool": pool, **for_fit}
                steps.append(step("pool", "calibrate", f"{SCALED}/temperature.json", options, True))
            steps += evaluations(
                "evaluate_temperature", SCALED, in_folds, load_path=work / CALIBRATED
            )
        return PlannedCell(settings, results, work, steps)

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

    def _calibration(self, options: Mapping[str, Any], evaluated: str) -> dict[str, Any]:
        """Return what the calibrator is fitted on; nothing if there are no cases for it, or these
        are evaluated.
        """
        parser = self._read("train", "calibrate")
        parser.update({**self._places, **options})
        calibration = fingerprint(parser.get(), CALIBRATION)
        split = calibration["split"]
        if split == evaluated or not any(
            read_patients(self.datalist(fold), split) for fold in self._folds
        ):
            return {}
        return {**calibration, **({"folds": self.folds} if self.folds else {})}

    def _test_set(self, own: ConfigParser, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is recorded of a further test set, and check that it was prepared like the
        own data.
        """
        folder = Path(options["dataset_dir"])
        datalist = folder / "datalist.json"
        here = _settings(self._read("train", "evaluate"), {**self._places, **options}, GEOMETRY)
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


def _settings(parser: ConfigParser, options: Mapping[str, Any], ids: Ids) -> dict[str, Any]:
    """Return the fingerprint of a run with options, whose values are checked."""
    with reading("options", "values that the bundle can use"):  # MONAI wraps what goes wrong
        parser.update(dict(options))
        read_as_typed(parser)
        settings = fingerprint(parser.get(), ids)
        parser["device"] = "cpu"  # planning uses no GPU; a run checks its own device
        check_values(parser)
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


def _shows(parser: ConfigParser, name: str, ids: Ids) -> bool:
    """Whether a fingerprint shows the value of an id: it changes with it."""
    if name not in parser:
        return False
    changed = ConfigParser(copy.deepcopy(parser.get()))
    changed[name] = "changed"
    return fingerprint(changed.get(), ids) != fingerprint(parser.get(), ids)


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
    for other in {"training", "validation"} - {split} if split != "training" else ():
        for shared in find_shared(listed[split], listed[other]):
            if other == "training" or not shared.is_volume:
                raise InputError(f"{datalist}: {shared}, in {split} and in {other}.")
            logging.getLogger(__name__).warning(
                "%s: %s, in %s and in %s.", datalist, shared, split, other
            )
    return read_patients(datalist, split)
