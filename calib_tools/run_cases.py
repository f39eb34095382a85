"""Many images in shares, side by side on this machine or as Slurm jobs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from calib_components.errors import make_folder, reading
from calib_tools.bundle_command import bundle_command
from calib_tools.jobs import Progress, end, make_executor, run_command, run_jobs
from calib_workflows.inference.images import ImageFolder
from calib_workflows.options import LEFT_OUT, read_as_typed
from calib_workflows.pages.quality import FOLDER
from calib_workflows.weights import check_weights_file


def run_shares(
    bundle: Path,
    options: Mapping[str, Any],
    executor: str,
    jobs: int,
    slurm: Mapping[str, Any] | None,
) -> None:
    """Run the inference of a bundle with options in shares of its images.

    Args:
        bundle: Folder of the bundle.
        options: Values of ids of its `inference.yaml`.
        executor: local, or slurm.
        jobs: Number of processes, or of Slurm jobs.
        slurm: Parameters of submitit.
    """
    file, output_dir = bundle / "configs" / "inference.yaml", Path(options["output_dir"])
    images = _find_images(file, options)
    total, records = len(images.find()) - len(images.left_out), output_dir / FOLDER
    logs = output_dir / ".run_cases"
    pool = make_executor(executor, jobs, logs / "slurm", slurm)
    number = min(total, jobs)
    if executor == "local":  # PyTorch would take all cores for each
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
    make_folder(logs)
    shares = {}
    for i in range(1, number + 1):
        typed = bundle_command([file], {**options, "shard": f"{i}/{number}"})
        log = logs / f"share_{i}_of_{number}.log"
        command = [sys.executable, *typed[1:]]
        shares[f"share {i} of {number}"] = partial(run_command, command, log, (0, LEFT_OUT))
    progress = Progress(total, "scan", lambda: len([*records.glob("[!.]*.json")]))
    failed = run_jobs(shares, pool, progress)
    if len(failed) < number:
        print(images.write_table())  # of all shares
    end(f"{number - len(failed)} of {number} shares are finished", failed)
    print(images.outcome())
    if images.left_out:
        sys.exit(LEFT_OUT)


def _find_images(file: Path, options: Mapping[str, Any]) -> ImageFolder:
    """Return the images of a configuration with options, once they are checked."""
    config = ConfigParser()
    with reading(file, "a configuration of the bundle"):
        config.read_config(str(file))
        config.update(dict(options))
        read_as_typed(config)
        weights, images = (config.get_parsed_content(name) for name in ("load_path", "images"))
    check_weights_file(weights)
    images.check()
    return images
