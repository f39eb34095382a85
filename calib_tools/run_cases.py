"""Many images or cases in shares, side by side on this machine or as Slurm jobs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from calib_components.errors import InputError, check_choice, make_folder, reading
from calib_tools.bundle_command import bundle_command
from calib_tools.jobs import end, make_executor, run_command, run_jobs
from calib_workflows.inference.images import MAPS, ImageFolder
from calib_workflows.options import read_as_typed

CONFIGS = {"infer": ["inference"], "evaluate": ["train", "evaluate"]}
SET_PER_SHARE = ("bundle_root", "shard", "skip_existing")


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

    A share is a run of the bundle with `--shard i/n --skip_existing true`. Any id of the bundle's
    inference.yaml, or of its train.yaml and evaluate.yaml, is an option as well, such as
    --ckpt_dir, --save or --split. The same command continues: images that have their maps, and
    cases that are measured, are skipped. An image that cannot be segmented ends its share. Of an
    evaluation, the share that ends last writes the files.

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
        overrides: Values for ids of the bundle.

    Raises:
        InputError: An option is unsuitable, or there are no images or cases.
    """
    check_choice("command", command, CONFIGS)
    for name in SET_PER_SHARE:
        if name in overrides:
            raise InputError(f"--{name} is set for each share. Use --workers or --jobs.")
    files = [bundle / "configs" / f"{name}.yaml" for name in CONFIGS[command]]
    options = {
        "bundle_root": str(bundle),
        "dataset_dir": str(dataset_dir),
        "output_dir": str(output_dir),
        **json.loads(json.dumps(overrides)),  # lists instead of tuples, as in YAML
        "skip_existing": True,
    }
    total, pattern, images = _count_work(command, files, options)
    logs = output_dir / ".run_cases"
    pool = make_executor(executor, workers, logs / "slurm", slurm)
    number = min(total, workers if executor == "local" else jobs)
    if executor == "local":  # PyTorch would take all cores for each
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
    make_folder(logs)
    shares = {}
    for i in range(1, number + 1):
        typed = bundle_command(files, {**options, "shard": f"{i}/{number}"})
        log = logs / f"share_{i}_of_{number}.log"
        shares[f"share {i} of {number}"] = partial(run_command, [sys.executable, *typed[1:]], log)
    failed = run_jobs(shares, pool, total, lambda: sum(1 for _ in output_dir.glob(pattern)))
    if images is not None and len(failed) < number:
        print(images.write_table())  # of all shares
    end(f"{number - len(failed)} of {number} shares are finished", failed)


def _count_work(
    command: str, files: Sequence[Path], options: Mapping[str, Any]
) -> tuple[int, str, ImageFolder | None]:
    """Return the number of images or cases, the pattern of a file that each has when it is done,
    and the images, if there are any.
    """
    config = ConfigParser()
    with reading(files[-1], "a configuration of the bundle"):
        config.read_config([str(file) for file in files])
        config.update(dict(options))
        read_as_typed(config)
        if command == "evaluate":
            records = config.get_parsed_content("records")
            return len(records.cases), f"{records.folder.name}/*.pt", None
        images = config.get_parsed_content("images")
    images.check()
    return len(images.find()), f"*_{MAPS[images.save[0]]}.nii.gz", images
