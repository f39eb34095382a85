"""Segment many images, or evaluate many cases, in shares: on this machine, or as an array of Slurm
jobs.

    python scripts/run_cases.py infer BUNDLE --dataset_dir SCANS --output_dir OUT \
      --executor slurm --slurm "{partition: gpu, gpus_per_node: 1, time: 60}" --jobs 50
    python scripts/run_cases.py evaluate BUNDLE --dataset_dir PREPARED --output_dir EVALUATION
    --workers 2

A share is a run of the bundle with `--shard i/n --skip_existing true`. The same command continues
an interrupted one.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from calib_components.bundle import read_as_typed
from calib_components.errors import InputError, check_choice, make_folder, reading
from calib_components.inference.images import MAPS, find_images
from calib_components.tools import cli
from calib_components.tools.bundle_command import bundle_command
from calib_components.tools.jobs import end, make_executor, run_command, run_jobs

CONFIGS = {"infer": ["inference"], "evaluate": ["train", "evaluate"]}


def run_cases(
    command: str,
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
    """Segment images, or evaluate the network on prepared cases, in shares: side by side, or as an
    array of Slurm jobs.

    Any id of the bundle's inference.yaml, or of its train.yaml and evaluate.yaml, is an option as
    well, such as --ckpt_dir, --save or --split. The same command continues: images that have their
    maps, and cases that are measured, are skipped. An image that cannot be segmented ends its
    share. Of an evaluation, the share that ends last writes the files.

    Args:
        command: infer, or evaluate.
        bundle: Folder of the bundle.
        dataset_dir: infer: one NIfTI file, or a folder of them. evaluate: prepared data, the
            bundle's or your own.
        output_dir: Folder for the maps, or for the files of the evaluation.
        executor: local, or slurm.
        workers: Number of processes on this machine, which share its cores.
        jobs: Number of Slurm jobs.
        slurm: Parameters of submitit for these jobs, such as "{time: 60, partition: gpu,
            gpus_per_node: 1}"; time is in minutes, by default 5. "array_parallelism: 4" runs no
            more than 4 at a time.
    """
    check_choice("command", command, CONFIGS)
    if given := [name for name in overrides if name in ("bundle_root", "shard", "skip_existing")]:
        raise InputError(f"--{given[0]} is set for each share. Use --workers or --jobs.")
    files = [bundle / "configs" / f"{name}.yaml" for name in CONFIGS[command]]
    places = {"bundle_root": bundle, "dataset_dir": dataset_dir, "output_dir": output_dir}
    options: dict[str, Any] = {name: str(place) for name, place in places.items()}
    # Lists instead of tuples, as in YAML
    options |= {**json.loads(json.dumps(overrides)), "skip_existing": True}
    config = ConfigParser()
    with reading(files[-1], "a configuration of the bundle"):
        config.read_config([str(file) for file in files])
    config.update(options)
    read_as_typed(config)
    if command == "infer":
        images = config.get_parsed_content("images")
        images.check()
        total, pattern = (
            len(find_images(images.path, images.file_suffixes)),
            f"*_{MAPS[images.save[0]]}.nii.gz",
        )
    else:
        records = config.get_parsed_content("records")
        total, pattern = len(records.cases), f"{records.folder.name}/*.pt"

    logs = output_dir / ".run_cases"
    pool = make_executor(executor, workers, logs / "slurm", slurm)
    count = min(total, workers if executor == "local" else jobs)
    if executor == "local":  # PyTorch would take all cores for each
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    make_folder(logs)
    shares = {}
    for i in range(1, count + 1):
        typed = [sys.executable, *bundle_command(files, {**options, "shard": f"{i}/{count}"})[1:]]
        shares[f"share {i} of {count}"] = partial(
            run_command, typed, logs / f"share_{i}_of_{count}.log"
        )
    failed = run_jobs(shares, pool, total, lambda: sum(1 for _ in output_dir.glob(pattern)))
    end(f"{count - len(failed)} of {count} shares are finished", failed)


if __name__ == "__main__":
    cli.run("run_cases", run_cases)
