"""Run a comparison: cells side by side on this machine or as Slurm jobs, with what is finished kept."""

from __future__ import annotations

import json
import queue
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import monai
import torch
from tqdm import tqdm

import calib_components
from calib_components.errors import InputError, make_folder, writing
from calib_components.tools.compare.arguments import check_places, is_device, read_test_sets
from calib_components.tools.compare.cell_settings import read_settings, write_settings
from calib_components.tools.compare.cells import collect_history, write_history
from calib_components.tools.compare.datalists import fitted_patients, read_test_patients
from calib_components.tools.compare.plan import (
    WORK,
    PlannedCell,
    check_comparable,
    check_folds,
    check_unchanged,
    find_folds,
    plan_cell,
)
from calib_components.tools.compare.processes import ProcessGroup
from calib_components.tools.compare.settings import choose_settings
from calib_components.tools.compare.slurm import check_executor, one_line, slurm_executor
from calib_components.tools.compare.steps import Step
from calib_components.tools.locks import LOCK, locked, try_lock
from calib_components.tools.report.results import add_to_plan, check_plan

__all__ = ["CellError", "compare_losses", "run_cell", "run_cells"]


class CellError(RuntimeError):
    """A cell failed; the message names the log."""


def run_cell(
    cell: PlannedCell,
    device: str | None = None,
    processes: ProcessGroup | None = None,
    of_all_folds: bool = False,
) -> bool:
    """Train and evaluate a cell, and move what was measured into the results folder.

    A finished cell is only evaluated on the further test sets that it lacks.

    A lock, which the runs inherit, keeps a second process away from a cell, even if the first one was killed while its
    training continues. The second process then waits.

    Args:
        cell: The cell.
        device: Device of both runs; None for the bundle's choice.
        processes: Group that starts both runs and can end them.
        of_all_folds: Evaluate a finished fold with the temperature of all folds instead.

    Returns:
        False if nothing was left to do.

    Raises:
        CellError: A run failed, or the group was ended while this one waited.
        InputError: The cell was started with other settings.
    """
    processes = processes or ProcessGroup()
    make_folder(cell.work)
    with open(cell.work / "lock", "w") as lock:
        if not try_lock(lock):
            tqdm.write(f"{cell.name}: waiting for an earlier process that still runs it")
            while not try_lock(lock):
                if processes.ending:
                    raise CellError("ended while waiting for an earlier process")
                time.sleep(0.5)
        check_unchanged(cell)  # again: another command may have started the cell since this one planned it
        is_finished = cell.results.is_dir()
        steps = cell.steps_of_all_folds() if of_all_folds else cell.unfinished_steps()
        if not steps:
            return False
        write_settings(cell.settings, cell.work)
        shutil.rmtree(cell.work / "eval", ignore_errors=True)
        for step in steps:
            command = [sys.executable, *step.command[1:], *([] if device is None else [f"--device={device}"])]
            log_file = cell.work / f"{step.name}.log"
            with open(log_file, "a+", errors="replace") as log:
                start = log.tell()
                code = processes.call(command, stdout=log, stderr=subprocess.STDOUT, pass_fds=[lock.fileno()])
                log.seek(start)
                output = log.read()
            if code != 0:
                raise CellError(f"{step.name} failed with exit code {code}{_reason_in_log(output)}; see {log_file}")
        if is_finished:
            _add_evaluations(cell, steps)
        else:
            _publish(cell, device)
        return True


def _reason_in_log(output: str) -> str:
    """Return the line of a log that says why a run failed: its last one, unless that belongs to a traceback."""
    lines = [line for line in output.splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[\w.]*(?:Error|Exception): ", line)]
    if lines and re.match(r"\S.*: expected .*, got ", lines[-1]) and lines[-1] not in raised:
        return f": {lines[-1]}"
    return f": {raised[0]}" if raised else ""


def _publish(cell: PlannedCell, device: str | None) -> None:
    """Create the results folder in one step."""
    used = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    made_with = {
        "calib_components": calib_components.__version__,
        "monai": monai.__version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(used) if used.type == "cuda" else str(used),
    }
    made = [step.shown for step in cell.unfinished_steps()]
    calibration = {} if cell.steps_of_all_folds() else cell.settings.calibration
    settings = replace(cell.settings, made_with=made_with, commands=made, calibration=calibration)
    with _copying(cell.work / "eval", cell.results, cell) as partial:
        write_history(collect_history(cell.work), partial)
        write_settings(settings, partial)


def _add_evaluations(cell: PlannedCell, steps: Sequence[Step]) -> None:
    """Add evaluations to the results of a finished cell; they count once its settings name them, which comes last."""
    made = read_settings(cell.results)
    evaluate_on = {
        **made.evaluate_on,
        **{s.test_set: cell.settings.evaluate_on[s.test_set] for s in steps if s.test_set},
    }
    calibration = cell.settings.calibration if any(step.needs_all_folds for step in steps) else made.calibration
    commands = [*made.commands, *(step.shown for step in steps)]
    settings = replace(made, evaluate_on=evaluate_on, calibration=calibration, commands=commands)
    added = [condition.folder for condition in settings.conditions if condition not in made.conditions]
    for folder in (name for name in added if Path(name).parent.name not in added):  # which holds those below it
        shutil.rmtree(cell.results / folder, ignore_errors=True)  # of a process that was killed here
        with _copying(cell.work / "eval" / folder, cell.results / folder, cell):
            pass
    write_settings(settings, cell.results)


@contextmanager
def _copying(source: Path, target: Path, cell: PlannedCell) -> Iterator[Path]:
    """Copy a folder in one step: the context gives the copy, to be completed, before it appears at its place."""
    partial = cell.results.with_name(f".{cell.results.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
        yield partial
        partial.rename(target)
    except OSError as error:
        raise InputError(f"{target}: expected a folder that can be written, got {_why(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _why(error: OSError) -> str:
    """Return why a folder could not be copied: `copytree` raises one error for all its files."""
    return error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror or str(error)


def run_cells(
    cells: Sequence[PlannedCell], submit: Callable[[PlannedCell], Any], of_all_folds: bool = False
) -> dict[str, str]:
    """Run cells and show their progress.

    Args:
        cells: The cells.
        submit: Starts `run_cell` and returns its future, with `done()` and `result()`.
        of_all_folds: As it is for `run_cell`.

    Returns:
        The reason for each cell that failed, by its name.
    """
    failed = {}
    steps = {cell.name: cell.steps_of_all_folds() if of_all_folds else cell.unfinished_steps() for cell in cells}
    done, totals = ({cell.name: cell.progress(steps[cell.name])[part] for cell in cells} for part in (0, 1))
    running = {cell.name: (cell, submit(cell)) for cell in cells}
    interval = 1 if sys.stderr.isatty() else 60
    total = sum(totals.values())
    # A step is an epoch of a training, the fit of a temperature, or an evaluation.
    with tqdm(total=total, initial=sum(done.values()), unit="step", mininterval=interval) as progress:
        while running:
            time.sleep(0.5)
            for name, (cell, future) in list(running.items()):
                now, _ = cell.progress(steps[name])
                progress.update(now - done[name])
                done[name] = now
                if future.done():
                    del running[name]
                    left = totals[name] - now
                    try:
                        future.result()
                        progress.update(left)
                        tqdm.write(f"{name}: finished, {cell.results}")
                    except Exception as error:
                        failed[name] = one_line(error)
                        total -= left
                        progress.total = total
                        progress.refresh()
                        tqdm.write(f"{name}: {failed[name]}")
    return failed


def _run_here(
    cells: Sequence[PlannedCell], of_all_folds: bool, workers: int, devices: Sequence[str | None]
) -> dict[str, str]:
    """Run cells side by side on this machine; end them on an interrupt."""
    free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for number in range(workers):
        free.put(devices[number % len(devices)])
    processes = ProcessGroup()

    def run_on_free_device(cell: PlannedCell) -> None:
        device = free.get()
        try:
            run_cell(cell, device, processes, of_all_folds)
        finally:
            free.put(device)

    pool = ThreadPoolExecutor(workers)
    try:
        return run_cells(cells, lambda cell: pool.submit(run_on_free_device, cell), of_all_folds)
    finally:
        processes.end()
        pool.shutdown(cancel_futures=True)


def _run_on_slurm(cells: Sequence[PlannedCell], of_all_folds: bool, executor: Any) -> dict[str, str]:
    """Run each cell as a job; cancel the jobs on an interrupt."""
    jobs: list[Any] = []

    def submit(cell: PlannedCell) -> Any:
        try:
            jobs.append(executor.submit(run_cell, cell, of_all_folds=of_all_folds))
        except RuntimeError as error:  # of Slurm
            raise InputError(f"--slurm: expected a job that is accepted, got {one_line(error)}") from error
        return jobs[-1]

    try:
        return run_cells(cells, submit, of_all_folds)
    finally:
        for job in jobs:
            if not job.done():
                job.cancel()


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
    """Train and evaluate every loss with every seed under one protocol, without and with a temperature.

    The temperature of each network is fitted on its own validation split, if there is one; with folds, one for all of
    a run on those of all, once they are trained.

    Any id of the bundle's train.yaml and evaluate.yaml is an option as well, such as --max_epochs 10 or
    --batch_size 8; it applies to every cell.

    Args:
        bundle: Folder of the bundle.
        dataset_dir: Prepared data, the bundle's or your own.
        out: Folder for the results, which are small enough to keep in git.
        losses: Presets (table1, table2, table3: those of the paper; tuning: the paper's grids and one for NACL,
            evaluated on the validation split), settings in them, or files in the bundle's configs/losses; separated by
            commas.
        seeds: Seeds of the trainings, such as 0,1.
        work: Folder for checkpoints, logs and TensorBoard's files; default: OUT/work, which git ignores.
        workers: Number of cells that run side by side; default: one, or one for each of the devices. On the CPU, set
            OMP_NUM_THREADS to the number of cores for each.
        devices: Devices to run on, such as cuda:0,cuda:1; default: the bundle's choice.
        executor: local, or slurm for one job per cell, and one more per fold for the temperature of all folds.
        slurm: Parameters of submitit for these jobs, such as "{time: 600, partition: gpu, gpus_per_node: 1}"; time is
            in minutes, by default 5.
        datalist: List of the prepared cases; default: datalist.json in dataset_dir.
        folds: Number of folds of a cross-validation, which prepare_data --folds prepared: every loss and seed is
            trained and evaluated once for each, and every patient tested once.
        evaluate_on: Further prepared test sets, such as those of another scanner, as NAME=DIR, separated by commas:
            every network is evaluated on their testing splits, too. Cells that are finished get those that they lack.

    Raises:
        InputError: An argument, a folder or a file is not as expected; nothing was run.
        SystemExit: A cell failed.
    """
    work = out / WORK if work is None else work
    check_places(bundle, dataset_dir, out, work, datalist)
    check_executor(executor, slurm)
    if executor == "slurm" and (workers is not None or devices is not None):
        raise InputError('--workers, --devices: expected --executor local, got slurm; use --slurm "{gpus_per_node: 1}"')
    if not losses or not all(losses):
        raise InputError(f"--losses: expected names such as table1 or nacl,ce_dice, got {losses!r}")
    if not seeds or any(seed < 0 for seed in seeds):
        raise InputError(f"--seeds: expected numbers of at least 0, such as 0,1,2, got {seeds!r}")
    if devices is not None and not (devices and all(map(is_device, devices))):
        raise InputError(f"--devices: expected names such as cuda:0,cuda:1, got {devices!r}")
    if workers is not None and workers < 1:
        raise InputError(f"--workers: expected a number of at least 1, got {workers}")
    if folds is not None and (folds < 2 or datalist is not None):
        raise InputError(f"--folds: expected a number of at least 2, and no --datalist, got {folds} and {datalist}")
    test_sets = read_test_sets(evaluate_on, dataset_dir)
    overrides = json.loads(json.dumps(overrides))  # lists instead of tuples, as in YAML
    if datalist is not None:
        overrides["datalist"] = str(datalist)
    if "tuning" in losses:
        overrides.setdefault("split", "validation")
    if folds is not None:
        find_folds(folds, dataset_dir)
    cells = [
        plan_cell(setting, seed, bundle, dataset_dir, out, work, overrides, fold, folds, test_sets)
        for seed in dict.fromkeys(seeds)
        for setting in choose_settings(losses, bundle)
        for fold in ([None] if folds is None else range(folds))
    ]
    for cell in cells:
        check_unchanged(cell)
    check_comparable(cells, out)
    check_folds(cells)
    check_plan(out)
    is_new = not work.is_dir() or not any(work.iterdir())
    cluster = slurm_executor(work / "slurm", slurm or {}) if executor == "slurm" else None

    for folder in (out, work):
        make_folder(folder)
    with locked(out / LOCK):  # other commands may have another work folder
        if is_new:
            with writing(work / ".gitignore") as file:
                file.write_text("*\n")
        add_to_plan([cell.entry() for cell in cells], out)
    if without := [cell.name for cell in cells if not cell.settings.calibration]:
        of = "" if len(without) == len(cells) else f" for {'; '.join(without)}"
        print(f"No temperature is fitted{of}: there are no validation cases, or they are what is evaluated")
    lists = [datalist or dataset_dir / "datalist.json"] if folds is None else dataset_dir.glob("datalist_fold*.json")
    fitted = set().union(*map(fitted_patients, lists))
    for name, folder in test_sets.items():
        if same := fitted & {*read_test_patients(folder / "datalist.json").values()}:
            print(
                f"{name}: {len(same)} of its patients are called as patients of the training or validation, such as "
                f"{min(same)}; if they are the same persons, the network has seen them"
            )
    for cell in cells:
        if steps := [*cell.unfinished_steps(), *cell.steps_of_all_folds()]:
            print("\n".join([f"{cell.name}:", *(step.shown for step in steps)]))
        else:
            print(f"{cell.name}: finished before, {cell.results}")

    def run(chosen: Sequence[PlannedCell], of_all_folds: bool) -> dict[str, str]:
        if cluster is not None:
            return _run_on_slurm(chosen, of_all_folds, cluster)
        on: Sequence[str | None] = devices or [None]
        return _run_here(chosen, of_all_folds, workers or len(on), on)

    failed = run([cell for cell in cells if cell.unfinished_steps()], False)
    if to_scale := [cell for cell in cells if cell.steps_of_all_folds()]:
        lacking = {cell.of_run: cell.name for cell in cells if not cell.results.is_dir()}
        failed |= {
            cell.name: f"no temperature without {lacking[cell.of_run]}"
            for cell in to_scale
            if cell.of_run in lacking and cell.name not in failed
        }
        failed |= run([cell for cell in to_scale if cell.of_run not in lacking], True)
    print(f"{len(cells) - len(failed)} of {len(cells)} cells are finished, {len(failed)} failed")
    for name, reason in failed.items():
        print(f"{name}: {reason}")
    if failed:
        sys.exit(1)
