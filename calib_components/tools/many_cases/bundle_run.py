"""A run of a bundle, case by case: planned in one process, done by any that has its configuration and its weights."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from monai.bundle import ConfigParser
from monai.utils import set_determinism

from calib_components.bundle import check_values
from calib_components.errors import InputError, error_line, make_folder, printable, reading
from calib_components.handlers import EvaluationWriter
from calib_components.handlers.evaluation_records import record_file
from calib_components.inference.images import Image, ImageFolder
from calib_components.inference.images import MAPS
from calib_components.tools.compare.configs import explaining, read_configs
from calib_components.tools.locks import locked

__all__ = ["WORK", "BundleRun", "Evaluation", "Inference", "PreparedCase", "digest_weights"]

WORK = ".run_cases"  # folder inside the output folder
WRITER = "calib_components.handlers.EvaluationWriter"
LOADER = "calib_components.handlers.WeightsCheckpointLoader"
OF_THE_ENGINE = ("StatsHandler", "ignite.handlers.ProgressBar")  # which show each case as a run of its own


@dataclass(frozen=True)
class BundleRun(ABC):
    """What a process needs to run a bundle on a case. It is called with a case.

    Attributes:
        files: Configuration files, to be joined.
        options: Ids that are overridden and their values, as JSON.
        output_dir: Folder of the results.
        weights: SHA-256 of the weights; a process that finds others does not begin.
    """

    files: tuple[Path, ...]
    options: str
    output_dir: Path
    weights: str

    group: ClassVar[str] = ""  # prefix of the ids of the evaluator, its dataset and its handlers

    @abstractmethod
    def names(self, case: Any) -> list[str]:
        """Return the names of the files that a finished case has, in `folder`."""

    @abstractmethod
    def sources(self, case: Any) -> list[Path]:
        """Return the files that a case is made from."""

    def discard(self, case: Any) -> None:
        """Remove the files of a finished case."""
        for name in self.names(case):
            (self.folder / name).unlink(missing_ok=True)

    @abstractmethod
    def run(self, case: Any, config: ConfigParser) -> None:
        """Run the bundle on a case."""

    @property
    def folder(self) -> Path:
        """Where the results of a case are."""
        return self.output_dir

    @property
    def work(self) -> Path:
        """Folder of settings, locks and logs."""
        return self.output_dir / WORK

    def lacking(self, cases: Sequence[Any]) -> list[Any]:
        """Return the cases that lack a file."""
        there = set(os.listdir(self.folder)) if self.folder.is_dir() else set()
        return [case for case in cases if not there.issuperset(self.names(case))]

    def has_results(self, cases: Sequence[Any]) -> bool:
        """Whether a case has a file that this run would write, or would with other options."""
        return len(self.lacking(cases)) < len(cases)

    def unfinished(self, cases: Sequence[Any]) -> list[Any]:
        """Return the cases that lack a file, or were made from files that have changed since."""
        lacking = {case.name for case in self.lacking(cases)}
        return [case for case in cases if case.name in lacking or self._made_from(case) != _states(self.sources(case))]

    def __call__(self, case: Any) -> str | None:
        """Run the bundle on a case unless it is finished; a process that works on the same case is waited for.

        Returns:
            Why it failed, in one line; None if it did not.

        Raises:
            InputError: The configuration cannot be used, so that no case can be run.
        """
        lock = self._lock(case)
        make_folder(lock.parent)
        with locked(lock) as made_from:
            if not self.unfinished([case]):
                return None
            config = _configure(self)
            states = _states(self.sources(case))
            try:
                if self._made_from(case) != states:  # results of files that have changed, or of a run that was killed
                    self.discard(case)
                made_from.truncate(0)
                self.run(case, config)
                if self.lacking([case]):
                    return "it has no results"
                made_from.write(states)
            except Exception as error:
                _configure.cache_clear()  # an engine that was left by an exception does not run again
                if line := error_line(error):
                    return line
                logging.getLogger(__name__).exception("%s failed", case.name)
                return printable(f"{type(error).__name__}: {error}")
            return None

    def was_tried(self, case: Any) -> bool:
        """Whether a process has begun with a case."""
        return self._lock(case).exists()

    def _lock(self, case: Any) -> Path:
        return self.work / "locks" / hashlib.sha256(os.fsencode(case.name)).hexdigest()[:32]

    def _made_from(self, case: Any) -> str:
        """Return the states of the files that a finished case was made from, which its lock holds."""
        try:
            return self._lock(case).read_text()
        except FileNotFoundError:
            return ""

    def configure(self, **changes: Any) -> ConfigParser:
        """Return the configuration for cases that are given one by one, with the weights in the network.

        Args:
            **changes: Further options.

        Raises:
            InputError: A file, an option or the weights are not suitable.
        """
        config = read_configs(self.files)
        config.update({**json.loads(self.options), **changes, f"{self.group}dataset::data": []})
        handlers = config[f"{self.group}handlers"]
        config["weights_loaders"] = [handler for handler in handlers if _target(handler) == LOADER]
        config[f"{self.group}handlers"] = self.handlers(handlers)
        with explaining(self.files[0].parent):
            check_values(config)
            config.get_parsed_content(f"{self.group}evaluator")
            if digest_weights(file := config.get_parsed_content("load_path")) != self.weights:
                raise InputError(f"{file}: expected the weights that the command began with, got others; run it again")
            for load in config.get_parsed_content("weights_loaders"):
                load(None)
        return config

    def handlers(self, handlers: Sequence[Any]) -> list[Any]:
        """Return the configuration of the handlers that run with each case."""
        return [handler for handler in handlers if _target(handler) not in (LOADER, *OF_THE_ENGINE)]

    def run_on(self, items: Iterable[Mapping[str, Any]], config: ConfigParser) -> None:
        """Run the evaluator on items of its dataset."""
        dataset = config.get_parsed_content(f"{self.group}dataset")
        evaluator = config.get_parsed_content(f"{self.group}evaluator")
        dataset.data = list(items)
        evaluator.state.epoch_length = len(dataset.data)  # taken from an empty dataset before
        evaluator.run()


def digest_weights(file: Any) -> str:
    """Return the SHA-256 of the weights.

    Raises:
        InputError: There is no such file, or it cannot be read.
    """
    if not Path(str(file)).exists():
        raise InputError(f"{file}: expected trained weights, got no such file; train first, or set --load_path")
    with reading(file, "trained weights") as path:
        return hashlib.sha256(path.read_bytes()).hexdigest()


def _states(files: Iterable[Path]) -> str:
    """Return where files are, how large, and when they changed, as text."""
    try:
        states = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError:
        return "missing"
    return json.dumps(states)


@lru_cache(1)
def _configure(run: BundleRun) -> ConfigParser:
    return run.configure()


def _target(handler: Any) -> Any:
    return handler.get("_target_") if isinstance(handler, Mapping) else None


@dataclass(frozen=True)
class Inference(BundleRun):
    """Segmentation of images with `inference.yaml`.

    Attributes:
        save: Names of the maps that are written.
    """

    save: tuple[str, ...]

    def names(self, case: Image) -> list[str]:
        return [f"{case.name}_{MAPS[name]}.nii.gz" for name in self.save]

    def discard(self, case: Image) -> None:
        files = [self.folder / name for name in _all_maps(case)]  # also those that are not saved now
        for file in files:
            pass
        for file in files:
            file.unlink(missing_ok=True)

    def has_results(self, cases: Sequence[Image]) -> bool:
        there = set(os.listdir(self.folder)) if self.folder.is_dir() else set()
        return any(not there.isdisjoint(_all_maps(case)) for case in cases)

    def sources(self, case: Image) -> list[Path]:
        return list(case.files)

    def run(self, case: Image, config: ConfigParser) -> None:
        images: ImageFolder = config.get_parsed_content("images")
        images.path = case.files[0]
        images.check()
        self.run_on(images.items(), config)


def _all_maps(case: Image) -> list[str]:
    return [f"{case.name}_{kind}.nii.gz" for kind in MAPS.values()]


@dataclass(frozen=True)
class PreparedCase:
    """A case of a datalist.

    Attributes:
        item: Its item, see `calib_components.data.read_datalist`.
    """

    item: dict[str, Any]

    @property
    def name(self) -> str:
        """What it is called in the files of the evaluation."""
        return Path(self.item["case"]).name


@dataclass(frozen=True)
class Evaluation(BundleRun):
    """Evaluation of prepared cases with `train.yaml` and `evaluate.yaml`: of each case, a record is written."""

    group: ClassVar[str] = "validate::"

    @property
    def folder(self) -> Path:
        return self.work / "records"

    def names(self, case: PreparedCase) -> list[str]:
        return [record_file(self.folder, case.name).name]

    def sources(self, case: PreparedCase) -> list[Path]:
        return [Path(case.item[key]) for key in ("image", "label")]

    def run(self, case: PreparedCase, config: ConfigParser) -> None:
        self.run_on([case.item], config)

    def configure(self, **changes: Any) -> ConfigParser:
        config = super().configure(**changes)
        set_determinism(seed=config.get_parsed_content("seed"))
        return config

    def handlers(self, handlers: Sequence[Any]) -> list[Any]:
        return [
            {**handler, "records": str(self.folder)} if _target(handler) == WRITER else handler
            for handler in super().handlers(handlers)
        ]

    def writer(self, config: ConfigParser) -> EvaluationWriter:
        """Return what writes the files of the evaluation."""
        handlers = config.get_parsed_content(f"{self.group}handlers")
        return next(handler for handler in handlers if isinstance(handler, EvaluationWriter))
