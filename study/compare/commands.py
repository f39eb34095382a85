"""The commands of the comparison of losses, see `calib_tools.commands`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


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

    The temperature of each network is fitted on its own validation split, if there is one.

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
        executor: local, or slurm for one job per cell.
        slurm: Parameters of submitit for these jobs, such as "{time: 600, partition: gpu,
            gpus_per_node: 1}"; time is in minutes, by default 5.
        datalist: List of the prepared cases; default: datalist.json in dataset_dir.
        folds: Number of folds of a cross-validation, which prepare_data --folds prepared: every
            loss and seed is trained and evaluated once for each, and every patient tested once.
        evaluate_on: Further prepared test sets, such as those of another scanner, as NAME=DIR,
            separated by commas: every network is evaluated on their testing splits, too. Cells that
            are finished get those that they lack.
    """
    from study.compare import run

    run.compare_losses(
        bundle,
        dataset_dir,
        out,
        losses,
        seeds,
        work,
        workers,
        devices,
        executor,
        slurm,
        datalist,
        folds,
        evaluate_on,
        **overrides,
    )


def report_comparison(
    folder: Path,
    out: Path = Path("report"),
    reference: str | None = None,
    compact: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write tables and figures of a comparison of losses.

    Cells that are not finished are named and left out.

    Args:
        folder: The results folder of compare_losses, or its compact form.
        out: Folder for the report.
        reference: Method that the others are compared with; default: nacl.
        compact: Folder for a compact form of the results; default: none is written.
        overwrite: Whether files of a report in `out` are replaced.

    Raises:
        InputError: A file is missing or broken, results cannot be compared, the reference is
            unknown, or `out` holds another report or cannot be written.
    """
    from study.compare import report

    report.report_comparison(folder, out, reference, compact, overwrite)
