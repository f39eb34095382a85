"""Train and evaluate a bundle with several losses under one protocol, and keep the results side by side.

    python scripts/compare_losses.py bundles/acdc_mri_nacl_segmentation --dataset_dir DATA --out results/acdc/table1

A *cell* is one loss setting and one seed: two plain runs of the bundle, one to train and one to evaluate. Their
commands are printed and kept in `OUT/commands.sh`; each runs by hand as well. What a finished cell measured is in
`OUT/NAME/seedN`, a folder that appears complete or not at all; what is large or unfinished is in `OUT/work/NAME/seedN`.

The same command goes on after an interruption: finished cells are skipped and half-trained ones resume. A folder made
with other settings is an error. `scripts/report.py OUT` makes tables and figures of what is there.

What `DATA/facts.yaml` says of the data holds for every cell: your own images can have classes of their own.
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
from typing import IO, Any

import fire
import monai
import torch
import yaml
from monai.bundle import ConfigParser
from tqdm import tqdm

import calib_components
from calib_components.comparison import differing_settings


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

# Set by this script for every cell.
RESERVED = ("bundle_root", "ckpt_dir", "device", "load_path", "output_dir", "resume", "seed")
# Say where things are or what runs them, not what is to be computed: random draws depend on the number of workers, and
# rounding on the device, as both do on a seed.
INDIFFERENT = (*RESERVED[:-1], "dataset_dir", "datalist", "source", "num_workers", "_meta_")


class CompareError(ValueError):
    """The arguments or the folders are not as they should be; the message is one line that says what is wrong."""


class CellError(RuntimeError):
    """A cell failed; the message names the log."""


@dataclass(frozen=True)
class Cell:
    """One loss setting and one seed.

    Attributes:
        name: what messages call it.
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
    def commands(self) -> list[str]:
        """Both commands as one types them."""
        return [_shown(self.train), _shown(self.evaluate)]

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
        CompareError: an id of `overrides` cannot be given, or there is no data.
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
    if type(train["max_epochs"]) is not int or train["max_epochs"] < 1:
        raise CompareError(f"--max_epochs: expected a number of at least 1, got {train['max_epochs']!r}")

    datalist = Path(overrides.get("datalist", dataset_dir / "datalist.json"))
    if not datalist.is_file():
        raise CompareError(f"{datalist}: no such file; prepare the data first, with scripts/prepare_data.py")
    split = evaluate["split"]
    cases = json.loads(datalist.read_text()).get(split)
    if not cases:
        raise CompareError(f"{datalist}: no cases in split {split!r}")

    name = f"{setting.name}/seed{seed}"
    places = {"bundle_root": bundle, "dataset_dir": dataset_dir, "ckpt_dir": work / name}
    return Cell(
        name=f"{setting.name}, seed {seed}",
        results=out / name,
        work=work / name,
        train=_command(train_files, {**places, "output_dir": work / name, "resume": True, **for_training, **own}),
        evaluate=_command(evaluate_files, {**places, "output_dir": work / name / "eval", **for_evaluation}),
        settings={
            "method": setting.name,
            "label": setting.label,
            "seed": seed,
            "bundle": bundle.resolve().name,
            "datalist": hashlib.sha256(datalist.read_bytes()).hexdigest(),
            "patients": {item["case"]: item.get("patient", item["case"]) for item in cases},
            "crop_size": _crop_size(train),
            "train": _computed(train.get()),
            "evaluate": _computed(evaluate.get()),
        },
    )


def _crop_size(train: ConfigParser) -> list[int]:
    try:
        return [int(size) for size in train.get_parsed_content("crop_size")]
    except (RuntimeError, TypeError, ValueError):
        raise CompareError(
            f"--image_size, --crop_size: expected two numbers such as [144,144], got {train['image_size']} and "
            f"{train['crop_size']}"
        ) from None


def _check_override(name: str, train: ConfigParser, evaluate: ConfigParser) -> None:
    first = name.partition("::")[0]
    if first in RESERVED:
        raise CompareError(f"--{name}: set by compare_losses for each cell")
    if first == "loss":
        raise CompareError(f"--{name}: losses are compared; write a file in configs/losses and name it in --losses")
    if name not in train and name not in evaluate:
        close = difflib.get_close_matches(name, [*train.get(), *evaluate.get()], 1)
        hint = f"; did you mean --{close[0]}?" if close else ""
        raise CompareError(f"--{name}: no such id in the bundle's train.yaml or evaluate.yaml{hint}")


def _computed(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in INDIFFERENT}


def _parser(files: Sequence[Path]) -> ConfigParser:
    for file in files:
        try:
            content = ConfigParser.load_config_file(file)
        except yaml.YAMLError as error:
            raise CompareError(f"{file}: cannot be read: {' '.join(str(error).split())}") from None
        if not isinstance(content, dict):
            raise CompareError(f"{file}: expected ids and their values, such as num_classes: 3, got {content!r:.50}")
    parser = ConfigParser()
    parser.read_config([str(file) for file in files])
    return parser


def _command(files: Sequence[Path], options: dict[str, Any]) -> list[str]:
    config_file = "[" + ",".join(repr(str(file)) for file in files) + "]"
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
    if cell.results.is_dir() and not (cell.results / "settings.json").is_file():
        raise CompareError(f"{cell.results}: not a finished cell, since it lacks settings.json; delete it")
    for folder, parts in ((cell.results, ("train", "evaluate")), (cell.work, ("train",))):
        if (folder / "settings.json").is_file():
            there, here = json.loads((folder / "settings.json").read_text()), cell.settings
            differing = ["the data"] if there["datalist"] != here["datalist"] else []
            for part in parts:
                keys = sorted(there[part].keys() | here[part].keys())
                differing += [key for key in keys if there[part].get(key) != here[part].get(key)]
            if differing:
                raise CompareError(
                    f"{folder}: made with other settings ({', '.join(dict.fromkeys(differing))}); "
                    "delete it to make it anew, or choose another --out"
                )


def check_comparable(cells: Sequence[Cell]) -> None:
    """Raise a CompareError when cells differ in more than loss and seed; a file of `configs/losses` can do that."""
    for cell in cells[1:]:
        if differing := differing_settings(cell.settings, cells[0].settings):
            raise CompareError(f"{cell.name}: not comparable with {cells[0].name}: {', '.join(differing)} differs")


def write_plan(cells: Sequence[Cell], out: Path) -> None:
    """Add the cells to `OUT/plan.json`, which tells the report what to expect, and their commands to `commands.sh`."""
    plan_file = out / "plan.json"
    planned = json.loads(plan_file.read_text()) if plan_file.is_file() else []
    by_name = {(entry["method"], entry["seed"]): entry for entry in planned}
    for cell in cells:
        method, seed = cell.settings["method"], cell.settings["seed"]
        by_name[method, seed] = {"method": method, "seed": seed, "commands": cell.commands}
    _write_json(list(by_name.values()), plan_file)
    lines = ["# For the folder that compare_losses.py was started in; a GPU is chosen by adding --device=cuda:1.\n"]
    lines += [f"# {e['method']}, seed {e['seed']}\n" + "\n".join(e["commands"]) + "\n" for e in by_name.values()]
    (out / "commands.sh").write_text("\n".join(lines))


# --- running ------------------------------------------------------------------------------------------------------


class Children:
    """Starts processes, each with its own children in a group of its own, and can end all of them."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen] = set()
        self.ending = False

    def call(self, command: Sequence[str], **options: Any) -> int:
        """As `subprocess.call`."""
        process = subprocess.Popen(command, start_new_session=True, **options)
        self._running.add(process)
        if self.ending:  # end() may have looked before this one was there
            self._kill(process)
        code = process.wait()
        self._running.discard(process)
        return code

    def end(self) -> None:
        """End all that run now, and all that are started later."""
        self.ending = True
        for process in list(self._running):
            self._kill(process)

    @staticmethod
    def _kill(process: subprocess.Popen) -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)


def run_cell(cell: Cell, device: str | None = None, children: Children | None = None) -> bool:
    """Train, evaluate, and put what was measured into the results folder.

    A lock, which the runs inherit, keeps a second process away from a cell: also when the first one was killed and its
    training goes on. That process then waits.

    Args:
        cell: what to run.
        device: for both runs; None leaves it to the bundle.
        children: what starts both runs and can end them.

    Returns:
        False when it was finished already.

    Raises:
        CellError: a run failed, or all were ended while it waited.
        CompareError: the cell was begun with other settings.
    """
    children = children or Children()
    cell.work.mkdir(parents=True, exist_ok=True)
    with open(cell.work / "lock", "w") as lock:
        if not _try_lock(lock):
            tqdm.write(f"{cell.name}: an earlier process is still at it, waiting for that")
            while not _try_lock(lock):
                if children.ending:
                    raise CellError("ended while waiting for an earlier process")
                time.sleep(0.5)
        check_made_alike(cell)  # again: another command may have begun it since this one planned it
        if cell.results.is_dir():
            return False
        _write_json(cell.settings, cell.work / "settings.json")
        shutil.rmtree(cell.work / "eval", ignore_errors=True)
        for what, command in (("train", cell.train), ("evaluate", cell.evaluate)):
            command = [sys.executable, *command[1:], *([] if device is None else [f"--device={device}"])]
            log_file = cell.work / f"{what}.log"
            with open(log_file, "a+") as log:
                start = log.tell()
                code = children.call(command, stdout=log, stderr=subprocess.STDOUT, pass_fds=[lock.fileno()])
                log.seek(start)
                output = log.read()
            if code != 0:
                errors = re.findall(r"^[\w.]*(?:Error|Exception): .*", output, re.MULTILINE)
                reason = f": {errors[0]}" if errors else ""
                raise CellError(f"{what} failed with exit code {code}{reason}; see {log_file}")
        _publish(cell, device)
        return True


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _publish(cell: Cell, device: str | None) -> None:
    """Make the results folder, all at once."""
    partial = cell.results.with_name(f".{cell.results.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(cell.work / "eval", partial)
    with open(partial / "history.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(read_history(cell.work))
    used = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    made_with = {
        "calib_components": calib_components.__version__,
        "monai": monai.__version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(used) if used.type == "cuda" else str(used),
    }
    _write_json({**cell.settings, "made_with": made_with, "commands": cell.commands}, partial / "settings.json")
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
                rows.setdefault(event.step, {}).update(
                    {"seconds": round(event.wall_time - before, 2), tag: event.value}
                )
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
    total = sum(cell.max_epochs for cell in cells)
    with tqdm(
        total=total,
        initial=sum(epochs.values()),
        unit="epoch",
        mininterval=1 if sys.stderr.isatty() else 60,
    ) as progress:
        while running:
            time.sleep(0.5)
            for name, (cell, future) in list(running.items()):
                epoch = cell.epoch
                progress.update(epoch - epochs[name])
                epochs[name] = epoch
                if future.done():
                    del running[name]
                    left = cell.max_epochs - epoch
                    try:
                        future.result()
                        progress.update(left)
                        tqdm.write(f"{name}: finished, {cell.results}")
                    except Exception as error:
                        failed[name] = _reason(error)
                        total -= left
                        progress.total = total
                        progress.refresh()
                        tqdm.write(f"{name}: {failed[name]}")
    return failed


def _reason(error: Exception) -> str:
    """What was raised, in one line, also where submitit gives the traceback of a job."""
    lines = str(error).splitlines() or [repr(error)]
    raised = [line for line in lines if re.match(r"[\w.]*(?:Error|Exception): ", line)]
    return re.sub(r"^[\w.]*(?:CellError|CompareError): ", "", raised[-1] if raised else lines[0])


def _submit_to_threads(cells: Sequence[Cell], workers: int, devices: Sequence[str | None]) -> dict[str, str]:
    """Run cells side by side on this machine; when interrupted, end what runs."""
    free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for number in range(workers):
        free.put(devices[number % len(devices)])
    children = Children()

    def run_on_free_device(cell: Cell) -> None:
        device = free.get()
        try:
            run_cell(cell, device, children)
        finally:
            free.put(device)

    pool = ThreadPoolExecutor(workers)
    try:
        return run_cells(cells, lambda cell: pool.submit(run_on_free_device, cell))
    finally:
        children.end()
        pool.shutdown(cancel_futures=True)


def _slurm_executor(folder: Path, parameters: dict[str, Any]) -> Any:
    """Raise a CompareError where there is no Slurm, or no such parameter."""
    try:
        import submitit
    except ImportError:
        raise CompareError("executor slurm needs submitit: pip install 'calib-components[slurm]'") from None
    try:
        executor = submitit.SlurmExecutor(folder=folder)
        executor.update_parameters(**parameters)
    except (RuntimeError, TypeError, ValueError) as error:
        raise CompareError(f"executor slurm: {error}") from None
    return executor


def _submit_to_slurm(cells: Sequence[Cell], executor: Any) -> dict[str, str]:
    """Run every cell as a job of its own; when interrupted, cancel them."""
    jobs: list[Any] = []

    def submit(cell: Cell) -> Any:
        jobs.append(executor.submit(run_cell, cell))
        return jobs[-1]

    try:
        return run_cells(cells, submit)
    finally:
        for job in jobs:
            if not job.done():
                job.cancel()


# --- command line -------------------------------------------------------------------------------------------------


def compare(
    bundle: str,
    dataset_dir: str,
    out: str,
    losses: str | Sequence[str] = "table1",
    seeds: int | Sequence[int] = 0,
    work: str | None = None,
    workers: int | None = None,
    devices: str | Sequence[str] | None = None,
    executor: str = "local",
    slurm: dict[str, Any] | None = None,
    **overrides: Any,
) -> None:
    """Train and evaluate every loss with every seed.

    Any id of the bundle's train.yaml and evaluate.yaml can be given as well, such as --max_epochs 10 or
    --image_size [128,128]; it holds for every cell.

    Args:
        bundle: folder of the bundle.
        dataset_dir: prepared data, the bundle's or your own; its facts.yaml is read after the bundle's train.yaml.
        out: folder of the results, small enough to keep in git.
        losses: presets (table1, table2, table3: those of the paper; tuning: the paper's grids, evaluated on the
            validation split), settings of theirs, or files of the bundle's configs/losses; several with commas.
        seeds: of the trainings, such as 0,1.
        work: folder of checkpoints, logs and TensorBoard's files; default: OUT/work, which git ignores.
        workers: cells that run side by side; default: one, or one for each of the devices. On CPU, set
            OMP_NUM_THREADS to the cores that each may use.
        devices: where to run, such as cuda:0,cuda:1; default: the bundle's choice.
        executor: local, or slurm for a job each.
        slurm: parameters of submitit for these jobs, such as "{time: 600, partition: gpu, gpus_per_node: 1}"; time is
            in minutes, and 5 where it is not given.
    """
    bundle_path, out_path = Path(str(bundle)), Path(str(out))
    work_path = out_path / "work" if work is None else Path(str(work))
    if work_path.resolve() == out_path.resolve():
        raise CompareError(f"--work and --out are the same folder, {out}")
    if not (bundle_path / "configs" / "train.yaml").is_file():
        raise CompareError(f"{bundle}: no bundle, since it lacks configs/train.yaml")
    if executor not in ("local", "slurm"):
        raise CompareError(f"executor: expected local or slurm, got {executor!r}")
    if executor == "slurm" and (workers is not None or devices is not None):
        raise CompareError('--workers and --devices are for this machine; use --slurm "{gpus_per_node: 1}"')
    if executor == "local" and slurm is not None:
        raise CompareError("--slurm needs --executor slurm")
    all_seeds, names, places = _listed(seeds), _listed(losses), _listed(devices)
    if not all_seeds or not all(type(seed) is int and seed >= 0 for seed in all_seeds):
        raise CompareError(f"seeds: expected numbers such as 0,1,2, got {seeds!r}")
    if not names or not all(isinstance(name, str) for name in names):
        raise CompareError(f"losses: expected names such as table1 or nacl,ce_dice, got {losses!r}")
    if not places or not all(isinstance(place, str | None) for place in places):
        raise CompareError(f"devices: expected names such as cuda:0,cuda:1, got {devices!r}")
    if workers is not None and (type(workers) is not int or workers < 1):
        raise CompareError(f"workers: expected a number of at least 1, got {workers!r}")
    overrides = json.loads(json.dumps(overrides))  # lists for tuples, as YAML has them
    if "tuning" in names:
        overrides.setdefault("split", "validation")
    cells = [
        plan_cell(setting, seed, bundle_path, Path(str(dataset_dir)), out_path, work_path, overrides)
        for seed in dict.fromkeys(all_seeds)
        for setting in choose_settings(names, bundle_path)
    ]
    check_comparable(cells)
    for cell in cells:
        check_made_alike(cell)
    slurm_executor = _slurm_executor(work_path / "slurm", slurm or {}) if executor == "slurm" else None

    for folder in (out_path, work_path):
        folder.mkdir(parents=True, exist_ok=True)
    (work_path / ".gitignore").write_text("*\n")
    with open(work_path / "plan.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_plan(cells, out_path)
    unfinished = []
    for cell in cells:
        if cell.results.is_dir():
            print(f"{cell.name}: finished before, {cell.results}")
        else:
            unfinished.append(cell)
            print("\n".join([f"{cell.name}:", *cell.commands]))
    if slurm_executor is not None:
        failed = _submit_to_slurm(unfinished, slurm_executor)
    else:
        failed = _submit_to_threads(unfinished, workers or len(places), places)
    print(f"{len(cells) - len(failed)} of {len(cells)} cells are finished, {len(failed)} failed")
    for name, reason in failed.items():
        print(f"{name}: {reason}")
    sys.exit(1 if failed else 0)


def _listed(value: Any) -> list[Any]:
    """What is given several times with commas, or as a list, as a list."""
    return value.split(",") if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else [value]


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        fire.Fire(compare)
    except CompareError as error:
        sys.exit(f"compare_losses: {error}")
    except KeyboardInterrupt:
        sys.exit("compare_losses: interrupted; the same command goes on from here")


if __name__ == "__main__":
    main()
