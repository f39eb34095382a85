"""Train and evaluate a bundle with several losses under one protocol, and keep the results side by side.

    python scripts/compare_losses.py bundles/acdc_mri_nacl_segmentation --dataset_dir data/acdc --out results/acdc/table1

A *cell* is one loss setting and one seed: two plain runs of the bundle, one to train and one to evaluate. Their commands
are printed and kept in `OUT/commands.sh`; each runs by hand as well. What a finished cell measured is in `OUT/NAME/seedN`
(a folder that appears complete or not at all), what is large or unfinished in `OUT/work/NAME/seedN`.

The same command goes on after an interruption: finished cells are skipped and half-trained ones resume. A folder made
with other settings is an error. `scripts/report.py OUT` makes tables and figures of what is there.
"""

from __future__ import annotations

import csv
import difflib
import fcntl
import hashlib
import json
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fire
import monai
import torch
from monai.bundle import ConfigParser
from tqdm import tqdm

import calib_components


@dataclass(frozen=True)
class Setting:
    """One way to train: a file of the bundle's `configs/losses`, and what differs from it."""

    name: str
    label: str
    loss: str
    overrides: dict[str, Any] = field(default_factory=dict)


def _variants(loss: str, label: str, argument: str, *values: Any) -> list[Setting]:
    return [Setting(f"{loss}_{v}", f"{label} {v}", loss, {f"loss::{argument}": v}) for v in values]


NACL = Setting("nacl", "NACL", "nacl")
TABLE1 = [
    Setting("ce_dice", "CE+DSC", "ce_dice"),
    Setting("focal", "FL", "focal"),
    Setting("entropy_penalty", "ECP", "entropy_penalty"),
    Setting("label_smoothing", "LS", "label_smoothing"),
    Setting("svls", "SVLS", "svls"),
    Setting("mbls", "MbLS", "mbls"),
    NACL,
]
PRESETS = {
    "table1": TABLE1,
    "table2": [
        NACL,
        *_variants("nacl", "NACL", "constraint", "softmax"),
        *_variants("nacl", "NACL", "penalty", "l2"),
        Setting("nacl_5x5", "NACL 5x5", "nacl", {"loss::kernel_size": 5}),
    ],
    "table3": [NACL, *_variants("nacl", "NACL", "prior", "gaussian", "max", "min", "median", "mode")],
    # The paper's grids. What Table 1 uses is there under its plain name.
    "tuning": [
        *TABLE1,
        *_variants("focal", "FL", "gamma", 1.0, 2.0),
        *_variants("entropy_penalty", "ECP", "penalty_weight", 0.2, 0.3),
        *_variants("label_smoothing", "LS", "alpha", 0.2, 0.3),
        *_variants("svls", "SVLS", "sigma", 0.5, 1.0),
        *_variants("mbls", "MbLS", "margin", 3.0, 10.0),
    ],
}

# Set for every cell, so not to be given; and what says where things are or how fast they go, not what is computed.
RESERVED = ("bundle_root", "ckpt_dir", "dataset_dir", "device", "loss", "load_path", "output_dir", "resume", "seed")
INDIFFERENT = (*(name for name in RESERVED if name not in ("loss", "seed")), "datalist", "num_workers", "_meta_")


class CompareError(ValueError):
    """The arguments or the folders are not as they should be; the message is one line that says what is wrong."""


class CellError(RuntimeError):
    """A cell failed; the message names the log."""


@dataclass(frozen=True)
class Cell:
    """One loss setting and one seed.

    Attributes:
        name: for messages.
        results: folder of the small files, there once the cell is finished.
        work: folder of checkpoints, logs and TensorBoard's files.
        train: command that trains; the same one resumes.
        evaluate: command that evaluates what was trained.
        settings: what the cell is made with, kept as `settings.json` in both folders.
    """

    name: str
    results: Path
    work: Path
    train: list[str]
    evaluate: list[str]
    settings: dict[str, Any]

    @property
    def max_epochs(self) -> int:
        return self.settings["train"]["max_epochs"]

    @property
    def epoch(self) -> int:
        """The last epoch that its log tells of."""
        log = self.work / "train.log"
        epochs = re.findall(r"Epoch\[(\d+)\]", log.read_text(errors="replace")) if log.is_file() else []
        return int(epochs[-1]) if epochs else 0


# --- planning -----------------------------------------------------------------------------------------------------


def choose_settings(losses: Sequence[str], bundle: Path) -> list[Setting]:
    """Settings by preset, by name, or by a file of the bundle's `configs/losses`; each of them once."""
    known = {setting.name: setting for preset in PRESETS.values() for setting in preset}
    chosen: dict[str, Setting] = {}
    for name in losses:
        if name in PRESETS:
            chosen.update((setting.name, setting) for setting in PRESETS[name])
        elif name in known:
            chosen[name] = known[name]
        elif (bundle / "configs" / "losses" / f"{name}.yaml").is_file():
            chosen[name] = Setting(name, name, name)
        else:
            options = [*PRESETS, *known, *(path.stem for path in (bundle / "configs" / "losses").glob("*.yaml"))]
            raise CompareError(f"losses: {name!r} is none of {', '.join(dict.fromkeys(options))}")
    return list(chosen.values())


def plan_cell(
    setting: Setting, seed: int, bundle: Path, dataset_dir: Path, out: Path, work: Path, overrides: dict[str, Any]
) -> Cell:
    """Work out the commands of a cell and what it is made with; nothing is written.

    Raises:
        CompareError: an id of `overrides` is not in the bundle's configuration.
    """
    configs = bundle / "configs"
    train_files = [configs / "train.yaml", configs / "losses" / f"{setting.loss}.yaml"]
    evaluate_files = [configs / "train.yaml", configs / "evaluate.yaml"]
    train, evaluate = _parser(train_files), _parser(evaluate_files)
    for name in overrides:
        if name not in train and name not in evaluate:
            known = [key for key in train.config if key != "_meta_"]
            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise CompareError(f"--{name}: no such id in {train_files[0]} or {evaluate_files[1].name}{hint}")
    own = {**setting.overrides, "seed": seed}
    for_training = {**{name: value for name, value in overrides.items() if name in train}, **own}
    train.update(for_training)
    evaluation = ConfigParser.load_config_file(evaluate_files[1])
    evaluation.update({name: value for name, value in overrides.items() if name in evaluation or name not in train})

    name = f"{setting.name}/seed{seed}"
    places = {"bundle_root": bundle, "dataset_dir": dataset_dir, "ckpt_dir": work / name}
    datalist = Path(overrides.get("datalist", dataset_dir / "datalist.json"))
    listed = json.loads(datalist.read_text())
    split = overrides.get("split", evaluation["split"])
    return Cell(
        name=f"{setting.name}, seed {seed}",
        results=out / name,
        work=work / name,
        train=_command(train_files, {**places, "output_dir": work / name, "resume": True, **for_training}),
        evaluate=_command(evaluate_files, {**places, "output_dir": work / name / "eval", **overrides}),
        settings={
            "method": setting.name,
            "label": setting.label,
            "seed": seed,
            "bundle": bundle.name,
            "datalist": hashlib.sha256(datalist.read_bytes()).hexdigest(),
            "split": split,
            "patients": {item["case"]: item.get("patient", item["case"]) for item in listed[split]},
            "train": {key: value for key, value in train.config.items() if key not in INDIFFERENT},
            "evaluate": {key: value for key, value in evaluation.items() if key not in INDIFFERENT},
        },
    )


def _parser(files: Sequence[Path]) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(file) for file in files])
    return parser


def _command(files: Sequence[Path], options: dict[str, Any]) -> list[str]:
    config_file = "[" + ",".join(f"'{file}'" for file in files) + "]"
    pairs = {"config_file": config_file, **options}
    return ["python", "-m", "monai.bundle", "run", *(f"--{name}={value}" for name, value in pairs.items())]


def _shown(command: Sequence[str]) -> str:
    """The command as one types it: in double quotes where that will do."""
    plain = re.compile(r'[^"$`\\!]*')
    return " ".join(
        word if shlex.quote(word) == word else f'"{word}"' if plain.fullmatch(word) else shlex.quote(word)
        for word in command
    )


def check_made_alike(cell: Cell) -> None:
    """Raise a CompareError when a folder of the cell was made with other settings."""
    for folder, parts in ((cell.results, ("train", "evaluate")), (cell.work, ("train",))):
        if (folder / "settings.json").is_file():
            there = json.loads((folder / "settings.json").read_text())
            here = json.loads(json.dumps(cell.settings))  # lists for tuples
            differing = ["the data"] if there["datalist"] != here["datalist"] else []
            for part in parts:
                keys = sorted(there[part].keys() | here[part].keys())
                differing += [key for key in keys if there[part].get(key) != here[part].get(key)]
            if differing:
                raise CompareError(
                    f"{folder}: made with another setting of {', '.join(differing)}; "
                    "delete it to make it anew, or choose another --out"
                )


# --- running ------------------------------------------------------------------------------------------------------


class Children:
    """Starts processes, each with its own children in a group of its own, and can end all of them."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen] = set()
        self._ending = False

    def call(self, command: Sequence[str], **options: Any) -> int:
        """As `subprocess.call`."""
        process = subprocess.Popen(command, start_new_session=True, **options)
        self._running.add(process)
        if self._ending:  # end() may have looked before this one was there
            self._kill(process)
        code = process.wait()
        self._running.discard(process)
        return code

    def end(self) -> None:
        """End all that run now, and all that are started later."""
        self._ending = True
        for process in list(self._running):
            self._kill(process)

    @staticmethod
    def _kill(process: subprocess.Popen) -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)


def run_cell(cell: Cell, device: str | None = None, call: Callable[..., int] = subprocess.call) -> bool:
    """Train, evaluate, and put what was measured into the results folder.

    A lock, which the runs inherit, keeps a second process away from a cell: also when the first one was killed and its
    training goes on. That process then waits.

    Args:
        cell: what to run.
        device: for both runs; None leaves it to the bundle.
        call: what runs a command.

    Returns:
        False when it was finished already.

    Raises:
        CellError: a run failed.
    """
    cell.work.mkdir(parents=True, exist_ok=True)
    with open(cell.work / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if cell.results.is_dir():
            return False
        _write_json(cell.settings, cell.work / "settings.json")
        shutil.rmtree(cell.work / "eval", ignore_errors=True)
        for what, command in (("train", cell.train), ("evaluate", cell.evaluate)):
            command = [sys.executable, *command[1:], *([] if device is None else [f"--device={device}"])]
            log_file = cell.work / f"{what}.log"
            with open(log_file, "a") as log:
                code = call(command, stdout=log, stderr=subprocess.STDOUT, pass_fds=[lock.fileno()])
            if code != 0:
                *_, reason = ["no output", *log_file.read_text(errors="replace").splitlines()]
                raise CellError(f"{what} failed with exit code {code}, see {log_file}: {reason}")
        _publish(cell)
        return True


def _publish(cell: Cell) -> None:
    """Make the results folder, all at once."""
    partial = cell.results.with_name(f".{cell.results.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(cell.work / "eval", partial)
    with open(partial / "history.csv", "w", newline="") as file:
        csv.writer(file).writerows(read_history(cell.work))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    made_with = {
        "calib_components": calib_components.__version__,
        "monai": monai.__version__,
        "torch": torch.__version__,
        "device": device,
    }
    commands = [_shown(cell.train), _shown(cell.evaluate)]
    _write_json({**cell.settings, "made_with": made_with, "commands": commands}, partial / "settings.json")
    partial.rename(cell.results)


def _write_json(content: Any, path: Path) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)


def read_history(work: Path) -> list[list[Any]]:
    """A header and a row for each epoch, from TensorBoard's files: epoch, seconds, and what was validated.

    A resumed training has several files; what the latest one says of an epoch counts.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows: dict[int, dict[str, Any]] = {}
    for path in sorted(work.glob("events.out.tfevents.*")):
        events = EventAccumulator(str(path)).Reload()
        for tag in events.Tags()["scalars"]:
            before = events.FirstEventTimestamp()
            for event in events.Scalars(tag):
                rows.setdefault(event.step, {}).update({"seconds": round(event.wall_time - before, 2), tag: event.value})
                before = event.wall_time
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    return [["epoch", *columns], *([epoch, *(rows[epoch].get(c, "") for c in columns)] for epoch in sorted(rows))]


def run_cells(cells: Sequence[Cell], submit: Callable[[Cell], Any]) -> dict[str, str]:
    """Run cells, show how far they are, and give the reason for each that failed.

    Args:
        cells: those to run.
        submit: starts `run_cell` somewhere and returns its future, with `done()` and `result()`.
    """
    failed = {}
    running = {cell.name: (cell, submit(cell)) for cell in cells}
    epochs = {cell.name: cell.epoch for cell in cells}
    with tqdm(
        total=sum(cell.max_epochs for cell in cells),
        initial=sum(epochs.values()),
        unit="epoch",
        mininterval=1 if sys.stderr.isatty() else 60,
    ) as progress:
        while running:
            time.sleep(0.5)
            for name, (cell, future) in list(running.items()):
                progress.update(cell.epoch - epochs[name])
                epochs[name] = cell.epoch
                if future.done():
                    del running[name]
                    try:
                        future.result()
                        tqdm.write(f"{name}: finished, {cell.results}")
                    except Exception as error:
                        failed[name] = str(error)
                        tqdm.write(f"{name}: {error}")
                        progress.update(cell.max_epochs - epochs[name])
    return failed
