"""Run a comparison: cells side by side on this machine or as Slurm jobs, with what is finished
kept.
"""

from __future__ import annotations

import json
import queue
import re
import shutil
import sys
from collections.abc import Sequence
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
from calib_components.tools.jobs import end, make_executor, run_command, run_jobs
from study.compare.cells import add_to_plan, read_settings, write_settings
from study.compare.plan import SCALED, PlannedCell, Protocol, Step
from study.compare.settings import choose_settings


def run_cell(
    cell: PlannedCell, of_all_folds: bool, devices: queue.SimpleQueue[str] | None = None
) -> str | None:
    """Run the steps of a cell that have no results yet, those that need all folds or the others,
    and add theirs.

    It takes one of the devices that are free, if given, for its time. Another process that runs the
    cell is waited for. Returns why it failed, in one line, or None.
    """
    device = devices.get() if devices else None
    make_folder(cell.work)
    try:
        with FileLock(cell.work / "lock"):
            steps = cell.unfinished(of_all_folds)
            shutil.rmtree(cell.work / "eval", ignore_errors=True)
            for step in steps:
                command = [
                    sys.executable,
                    *step.command[1:],
                    *([] if device is None else [f"--device={device}"]),
                ]
                if reason := run_command(command, cell.work / f"{step.name}.log"):
                    return f"{step.name} failed: {reason}"
            if steps:
                _publish(cell, steps, device)
    finally:
        if devices and device:
            devices.put(device)
    return None


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
        shutil.copytree(cell.work / "eval", folder, dirs_exist_ok=True)
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
    """Train and evaluate every loss with every seed under one protocol, without and with a
    temperature.

    The temperature of each network is fitted on its own validation split, if there is one; with
    folds, one for all of a run on those of all, once they are trained.

    Any id of the bundle's train.yaml and evaluate.yaml is an option as well, such as --max_epochs
    10 or --batch_size 8; it applies to every cell.

    Args:
        bundle: Folder of the bundle.
        dataset_dir: Prepared data, the bundle's or your own.
        out: Folder for the results, which are small enough to keep in git.
        losses: Presets (table1, table2, table3: those of the paper; tuning: the paper's grids and
            weights of MbLS and NACL, evaluated on the validation split), settings in them, or files
            in the bundle's configs/losses; separated by commas.
        seeds: Seeds of the trainings, such as 0,1.
        work: Folder for checkpoints, logs and TensorBoard's files; default: OUT/work, which git
            ignores.
        workers: Number of cells that run side by side; default: one, or one for each of the
            devices. On the CPU, set OMP_NUM_THREADS to the number of cores for each.
        devices: Devices to run on, such as cuda:0,cuda:1; default: the bundle's choice.
        executor: local, or slurm for one job per cell, and one more per fold for the temperature of
            all folds.
        slurm: Parameters of submitit for these jobs, such as "{time: 600, partition: gpu,
            gpus_per_node: 1}"; time is in minutes, by default 5.
        datalist: List of the prepared cases; default: datalist.json in dataset_dir.
        folds: Number of folds of a cross-validation, which prepare_data --folds prepared: every
            loss and seed is trained and evaluated once for each, and every patient tested once.
        evaluate_on: Further prepared test sets, such as those of another scanner, as NAME=DIR,
            separated by commas: every network is evaluated on their testing splits, too. Cells that
            are finished get those that they lack.
    """
    work = out / "work" if work is None else work
    if work.resolve() == out.resolve():
        raise InputError("--work must be another folder than --out.")
    if folds is not None and (
        datalist is not None or len([*dataset_dir.glob("datalist_fold*.json")]) != folds
    ):
        raise InputError(
            f"--folds {folds} needs the lists of prepare_data --folds {folds}, and no --datalist."
        )
    overrides = json.loads(json.dumps(overrides))  # lists instead of tuples, as in YAML
    if datalist is not None:
        overrides["datalist"] = str(datalist)
    if "tuning" in losses:
        overrides.setdefault("split", "validation")
    test_sets = {
        name: Path(place) for name, _, place in (text.partition("=") for text in evaluate_on)
    }
    for name, folder in test_sets.items():
        if not re.fullmatch(r"\w[\w.-]*", name) or folder.resolve() in (
            dataset_dir.resolve(),
            Path.cwd(),
        ):
            raise InputError(
                "--evaluate_on must be NAME=DIR, with other data than --dataset_dir, got"
                f" {name}={folder}."
            )
    protocol = Protocol(bundle, dataset_dir, out, work, overrides, folds, test_sets)
    cells = [
        protocol.plan_cell(setting, seed, fold)
        for seed in dict.fromkeys(seeds)
        for setting in choose_settings(losses, bundle)
        for fold in ([None] if folds is None else range(folds))
    ]
    _check_comparable(cells, out)
    seen = {name: protocol.seen_cases(name) for name in test_sets}
    if devices and executor != "local":
        raise InputError(
            "--devices: jobs on Slurm get their own devices. Leave the option out, see --slurm."
        )
    count = workers or len(devices or [None])
    pool = make_executor(executor, count, work / "slurm", slurm)
    is_new = not work.is_dir() or not any(work.iterdir())
    make_folder(work)
    make_folder(out)
    if is_new:
        (work / ".gitignore").write_text("*\n")
    with FileLock(out / ".lock"):
        add_to_plan([_plan_entry(cell) for cell in cells], out)
    for cell in cells:
        if not cell.settings.calibration:
            print(
                f"{cell.settings.name}: no temperature, since there are no validation cases or"
                " these are evaluated"
            )
        if not cell.unfinished():
            print(f"{cell.settings.name}: finished before, {cell.results}")
    for name in test_sets:
        if seen[name]:
            number = len({pair.one["patient"] for pair in seen[name]})
            print(
                f"{name}: {number} of its patients have names of patients trained or validated on:"
                f" {seen[name][0]}"
            )
    free: queue.SimpleQueue[str] | None = queue.SimpleQueue() if devices else None
    if free and devices:
        for number in range(count):
            free.put(devices[number % len(devices)])

    def run(chosen: Sequence[PlannedCell], of_all_folds: bool) -> dict[str, str]:
        return run_jobs(
            {cell.settings.name: partial(run_cell, cell, of_all_folds, free) for cell in chosen},
            pool,
        )

    failed = run([cell for cell in cells if cell.unfinished(of_all_folds=False)], False)
    incomplete = {_run_of(cell) for cell in cells if cell.unfinished(of_all_folds=False)}
    late = [
        cell
        for cell in cells
        if cell.unfinished(of_all_folds=True) and _run_of(cell) not in incomplete
    ]
    failed |= run(late, True)
    finished = [cell for cell in cells if not cell.unfinished()]
    end(f"{len(finished)} of {len(cells)} cells are finished", failed)


def _run_of(cell: PlannedCell) -> tuple[str, int]:
    """What the folds of a run have in common."""
    return cell.settings.method, cell.settings.seed


def _plan_entry(cell: PlannedCell) -> dict[str, Any]:
    """Return what the plan has of a cell: the commands that made what is finished, and those that
    are left.
    """
    made = read_settings(cell.results).commands if cell.results.is_dir() else []
    left, of_all_folds = (
        [step.shown for step in cell.unfinished(later)] for later in (False, True)
    )
    entry = {"method": cell.settings.method, "seed": cell.settings.seed, "fold": cell.settings.fold}
    entry |= {"commands": [*made, *left], "of_all_folds": of_all_folds or None}
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
