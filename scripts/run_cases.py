"""Segment many images, or evaluate many cases, in shares: on this machine, or as an array of Slurm jobs.

    python scripts/run_cases.py infer BUNDLE --dataset_dir SCANS --output_dir OUT \
      --executor slurm --slurm "{partition: gpu, gpus_per_node: 1, time: 60}" --jobs 50
    python scripts/run_cases.py evaluate BUNDLE --dataset_dir PREPARED --output_dir EVALUATION --workers 2

A share is a run of the bundle with `--shard i/n --skip_existing true`. The same command continues an interrupted one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from calib_components.errors import InputError, make_folder, reading
from calib_components.handlers.evaluation_records import EvaluationRecords
from calib_components.inference.images import MAPS, ImageFolder, find_images
from calib_components.tools import cli
from calib_components.tools.compare.plan import bundle_command
from calib_components.tools.jobs import make_executor, run_command, run_jobs


def infer(
    bundle: Path,
    *,
    dataset_dir: Path,
    output_dir: Path,
    executor: str = "local",
    workers: int = 1,
    jobs: int = 10,
    slurm: dict[str, Any] | None = None,
    **overrides: Any,
) -> None:
    """Segment a folder of images in shares: here, side by side, or as an array of Slurm jobs.

    Any id of the bundle's inference.yaml is an option as well, such as --ckpt_dir, --save or --tta. An image that
    cannot be segmented ends its share. The same command continues: images that have their maps are skipped.

    Args:
        bundle: Folder of the bundle.
        dataset_dir: One NIfTI file, or a folder of them.
        output_dir: Folder for the maps.
        executor: local, or slurm.
        workers: Number of processes on this machine, which share its cores.
        jobs: Number of Slurm jobs.
        slurm: Parameters of submitit for these jobs, such as "{time: 60, partition: gpu, gpus_per_node: 1}"; time is
            in minutes, by default 5. "array_parallelism: 4" runs no more than 4 at a time.

    Raises:
        InputError: An argument is not as expected; nothing was run.
        SystemExit: A share failed.
    """
    places = {"dataset_dir": dataset_dir, "output_dir": output_dir}
    config, options = _configure(bundle, ["inference"], places, overrides)
    images: ImageFolder = config.get_parsed_content("images")
    images.check()
    total, pattern = len(find_images(images.path, images.file_suffixes)), f"*_{MAPS[images.save[0]]}.nii.gz"
    _run_shares(options, output_dir, total, pattern, executor, workers, jobs, slurm)


def evaluate(
    bundle: Path,
    *,
    dataset_dir: Path,
    output_dir: Path,
    executor: str = "local",
    workers: int = 1,
    jobs: int = 10,
    slurm: dict[str, Any] | None = None,
    **overrides: Any,
) -> None:
    """Evaluate the network on prepared cases in shares: here, side by side, or as an array of Slurm jobs.

    Any id of the bundle's train.yaml and evaluate.yaml is an option as well, such as --ckpt_dir, --split or --datalist.
    The same command continues: cases that are measured are kept. The share that ends last writes the files of the
    evaluation.

    Args:
        bundle: Folder of the bundle.
        dataset_dir: Prepared data, the bundle's or your own.
        output_dir: Folder for the files of the evaluation.
        executor: local, or slurm.
        workers: Number of processes on this machine, which share its cores.
        jobs: Number of Slurm jobs.
        slurm: Parameters of submitit for these jobs, such as "{time: 60, partition: gpu, gpus_per_node: 1}"; time is
            in minutes, by default 5. "array_parallelism: 4" runs no more than 4 at a time.

    Raises:
        InputError: An argument is not as expected; nothing was run.
        SystemExit: A share failed.
    """
    places = {"dataset_dir": dataset_dir, "output_dir": output_dir}
    config, options = _configure(bundle, ["train", "evaluate"], places, overrides)
    records: EvaluationRecords = config.get_parsed_content("records")
    pattern = f"{records.folder.name}/*.pt"
    _run_shares(options, output_dir, len(records.cases), pattern, executor, workers, jobs, slurm)


def _configure(
    bundle: Path, names: Sequence[str], places: Mapping[str, Path], overrides: Mapping[str, Any]
) -> tuple[ConfigParser, Callable[[str], list[str]]]:
    """Return the configuration, and what returns the command of a shard."""
    files = [bundle / "configs" / f"{name}.yaml" for name in names]
    if given := [name for name in overrides if name in ("bundle_root", "shard", "skip_existing")]:
        raise InputError(f"--{given[0]} is set for each share. Use --workers or --jobs.")
    options: dict[str, Any] = {"bundle_root": str(bundle), **{name: str(place) for name, place in places.items()}}
    options |= {**json.loads(json.dumps(overrides)), "skip_existing": True}  # lists instead of tuples, as in YAML
    config = ConfigParser()
    with reading(files[-1], "a configuration of the bundle"):
        config.read_config([str(file) for file in files])
    config.update(options)
    return config, lambda shard: [sys.executable, *bundle_command(files, {**options, "shard": shard})[1:]]


def _run_shares(
    command: Callable[[str], list[str]],
    output_dir: Path,
    total: int,
    pattern: str,
    executor: str,
    workers: int,
    jobs: int,
    slurm: Mapping[str, Any] | None,
) -> None:
    logs = output_dir / ".run_cases"
    pool = make_executor(executor, workers, logs / "slurm", slurm)
    count = min(total, workers if executor == "local" else jobs)
    if executor == "local":  # PyTorch would take all cores for each
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    make_folder(logs)
    shares = {
        f"share {i} of {count}": partial(run_command, command(f"{i}/{count}"), logs / f"share_{i}_of_{count}.log")
        for i in range(1, count + 1)
    }
    failed = run_jobs(shares, pool, total, lambda: sum(1 for _ in output_dir.glob(pattern)))
    print(f"{count - len(failed)} of {count} shares are finished, {len(failed)} failed")
    for name, reason in failed.items():
        print(f"{name}: {reason}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    cli.run("run_cases", {"infer": infer, "evaluate": evaluate})
