"""Run a comparison: cells side by side on this machine or as Slurm jobs, with what is finished
kept.
"""

from __future__ import annotations

import itertools
import json
import queue
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import monai
import pandas as pd
import torch
from filelock import FileLock

import calib_components
from calib_components.errors import InputError, make_folder, writing, writing_folder
from calib_tools.jobs import end, make_executor, run_command, run_jobs
from calib_workflows.data.overlap import Shared
from study.compare.cells import add_to_plan, read_settings, write_settings
from study.compare.plan import SCALED, PlannedCell, Protocol, Step
from study.compare.settings import Setting, choose_settings


def run_cell(cell: PlannedCell, devices: queue.SimpleQueue[str] | None = None) -> str | None:
    """Run the steps of a cell that have no results yet, and add theirs.

    It takes one of the devices that are free, if given, for its time. Another process that runs the
    cell is waited for. Returns why it failed, in one line, or None.
    """
    device = devices.get() if devices else None
    make_folder(cell.work)
    try:
        with FileLock(cell.work / "lock"):
            steps = cell.unfinished()
            shutil.rmtree(cell.work / "eval", ignore_errors=True)
            for step in steps:
                if reason := _run_step(step, cell.work, device):
                    return f"{step.name} failed: {reason}"
            if steps:
                _publish(cell, steps, device)
    finally:
        if devices and device:
            devices.put(device)
    return None


def _run_step(step: Step, work: Path, device: str | None) -> str | None:
    command = [sys.executable, *step.command[1:]]
    if device is not None:
        command.append(f"--device={device}")
    return run_command(command, work / f"{step.name}.log")


def _publish(cell: PlannedCell, steps: Sequence[Step], device: str | None) -> None:
    """Add what steps have written to the results of a cell, whose folder is replaced by one with
    these.
    """
    used = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    made_with = {
        "calib_components": calib_components.__version__,
        "monai": monai.__version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(used) if used.type == "cuda" else str(used),
    }
    made = replace(cell.settings, made_with=made_with, evaluate_on={})
    make_folder(cell.results.parent)
    with writing_folder(cell.results) as folder:
        if cell.results.is_dir():
            made = read_settings(cell.results)
            shutil.copytree(cell.results, folder, dirs_exist_ok=True)
        # Without the hidden record of each run
        ignored = shutil.ignore_patterns(".*")
        shutil.copytree(cell.work / "eval", folder, ignore=ignored, dirs_exist_ok=True)
        if steps[0].name == "train":
            write_history(cell.work, folder)
        is_scaled = (folder / SCALED / "summary.json").is_file()
        last = Path(SCALED if is_scaled else "", "summary.json")
        test_sets = {**made.evaluate_on, **cell.settings.evaluate_on}
        settings = replace(
            made,
            calibration=cell.settings.calibration if is_scaled else {},
            evaluate_on={
                name: data
                for name, data in test_sets.items()
                if (folder / f"on_{name}" / last).is_file()
            },
            commands=[*made.commands, *(step.shown for step in steps)],
        )
        write_settings(settings, folder)


def write_history(work: Path, folder: Path) -> None:
    """Write `history.csv`, a row for each epoch of a training: its seconds, and what was validated.

    A resumed training has several files of TensorBoard; for an epoch in more than one of them, the
    latest counts.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows: dict[int, dict[str, float]] = {}
    for path in sorted(work.glob("events.out.tfevents.*")):
        events = EventAccumulator(str(path)).Reload()
        for tag in events.Tags()["scalars"]:
            before = events.FirstEventTimestamp()
            for event in events.Scalars(tag):
                seconds = round(event.wall_time - before, 2)
                rows.setdefault(event.step, {}).update({"seconds": seconds, tag: event.value})
                before = event.wall_time
    table = pd.DataFrame.from_dict(rows, orient="index").sort_index()
    with writing(folder / "history.csv") as file:
        table.to_csv(file, index_label="epoch", lineterminator="\n")


def compare_losses(
    bundle: Path,
    dataset_dir: Path,
    out: Path,
    losses: Sequence[str] = ("table1",),
    seeds: Sequence[int] = (0,),
    work: Path | None = None,
    workers: int | None = None,
    devices: Sequence[str] | None = None,
    executor: str = "local",
    slurm: dict[str, Any] | None = None,
    datalist: Path | None = None,
    folds: int | None = None,
    evaluate_on: Sequence[str] = (),
    **overrides: Any,
) -> None:
    """See `study.compare.commands.compare_losses`."""
    overrides = json.loads(json.dumps(overrides))  # lists instead of tuples, as in YAML
    if datalist is not None:
        overrides["datalist"] = str(datalist)
    if "tuning" in losses:
        overrides = {"split": "validation", **overrides}
    work = out / "work" if work is None else work
    _check_places(dataset_dir, out, work, datalist, folds)
    test_sets = read_test_sets(evaluate_on, dataset_dir)
    protocol = Protocol(bundle, dataset_dir, out, work, overrides, folds, test_sets)
    cells = plan_cells(protocol, choose_settings(losses, bundle), seeds)
    seen = {name: protocol.seen_cases(name) for name in test_sets}
    count = _count_workers(workers, devices, executor)
    pool = make_executor(executor, count, work / "slurm", slurm)
    _make_folders(out, work)
    with FileLock(out / ".lock"):
        add_to_plan([_plan_entry(cell) for cell in cells], out)
    _print_plan(cells, seen)
    failed = run_cells(cells, pool, _queue_devices(devices, count))
    finished = [cell for cell in cells if not cell.unfinished()]
    end(f"{len(finished)} of {len(cells)} cells are finished", failed)


def _count_workers(workers: int | None, devices: Sequence[str] | None, executor: str) -> int:
    if devices and executor != "local":
        raise InputError(
            "--devices: jobs on Slurm get their own devices. Leave the option out, see --slurm."
        )
    return workers or len(devices or [None])


def _check_places(
    dataset_dir: Path, out: Path, work: Path, datalist: Path | None, folds: int | None
) -> None:
    if work.resolve() == out.resolve():
        raise InputError("--work must be another folder than --out.")
    if folds is None:
        return
    if datalist is not None or len([*dataset_dir.glob("datalist_fold*.json")]) != folds:
        raise InputError(
            f"--folds {folds} needs the lists of prepare_data --folds {folds}, and no --datalist."
        )


def read_test_sets(texts: Sequence[str], dataset_dir: Path) -> dict[str, Path]:
    """Read the folder of each further test set from `NAME=DIR`."""
    test_sets = {}
    for text in texts:
        name, _, place = text.partition("=")
        is_own = Path(place).resolve() in (dataset_dir.resolve(), Path.cwd())
        if is_own or not re.fullmatch(r"\w[\w.-]*", name):
            raise InputError(
                "--evaluate_on must be NAME=DIR, with other data than --dataset_dir, got"
                f" {name}={Path(place)}."
            )
        test_sets[name] = Path(place)
    return test_sets


def plan_cells(
    protocol: Protocol, settings: Sequence[Setting], seeds: Sequence[int]
) -> list[PlannedCell]:
    """Return a cell for each seed, setting and fold, which can be compared with what is
    finished.
    """
    folds = [None] if protocol.folds is None else range(protocol.folds)
    cells = [
        protocol.plan_cell(setting, seed, fold)
        for seed, setting, fold in itertools.product(dict.fromkeys(seeds), settings, folds)
    ]
    _check_comparable(cells, protocol.out)
    return cells


def _make_folders(out: Path, work: Path) -> None:
    is_new = not work.is_dir() or not any(work.iterdir())
    make_folder(work)
    make_folder(out)
    if is_new:
        (work / ".gitignore").write_text("*\n")


def _print_plan(cells: Sequence[PlannedCell], seen: Mapping[str, Sequence[Shared]]) -> None:
    """Print what has no temperature, what is finished, and what a test set shares by name."""
    for cell in cells:
        if not cell.settings.calibration:
            print(
                f"{cell.settings.name}: no temperature, since there are no validation cases or"
                " these are evaluated"
            )
        if not cell.unfinished():
            print(f"{cell.settings.name}: finished before, {cell.results}")
    for name, shared in seen.items():
        if shared:
            number = len({pair.one["patient"] for pair in shared})
            print(
                f"{name}: {number} of its patients have names of patients trained or validated on:"
                f" {shared[0]}"
            )


def _queue_devices(devices: Sequence[str] | None, count: int) -> queue.SimpleQueue[str] | None:
    """Return devices for workers, which take turns on them."""
    if not devices:
        return None
    free: queue.SimpleQueue[str] = queue.SimpleQueue()
    for number in range(count):
        free.put(devices[number % len(devices)])
    return free


def run_cells(
    cells: Sequence[PlannedCell], pool: Any, devices: queue.SimpleQueue[str] | None
) -> dict[str, str]:
    """Run what is left of cells; return why some failed, by name."""
    jobs = {
        cell.settings.name: partial(run_cell, cell, devices) for cell in cells if cell.unfinished()
    }
    return run_jobs(jobs, pool)


def _plan_entry(cell: PlannedCell) -> dict[str, Any]:
    """Return what the plan has of a cell: the commands that made what is finished, and those that
    are left.
    """
    made = read_settings(cell.results).commands if cell.results.is_dir() else []
    left = [step.shown for step in cell.unfinished()]
    entry = {"method": cell.settings.method, "seed": cell.settings.seed, "fold": cell.settings.fold}
    entry |= {"commands": [*made, *left]}
    return {name: value for name, value in entry.items() if value is not None}


def _check_comparable(cells: Sequence[PlannedCell], out: Path) -> None:
    """Check that cells differ in loss, seed and fold alone, also from those that are finished.

    A file in `configs/losses` can change more than the loss.
    """
    compared = {cells[0].settings.name: cells[0].settings}
    compared |= {
        str(file.parent): read_settings(file.parent)
        for file in sorted(out.glob("*/seed*/settings.json"))
    }
    for settings in (cell.settings for cell in cells):
        for name, other in compared.items():
            if differences := settings.differences(other):
                raise InputError(
                    f"{settings.name} and {name} cannot be compared, since they differ in"
                    f" {', '.join(differences)}. Choose another --out, or delete results with other"
                    " settings."
                )
