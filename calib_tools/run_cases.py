"""Many images in shares, side by side on this machine or as Slurm jobs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from calib_components.errors import InputError, check_choice, make_folder, reading
from calib_tools.bundle_command import bundle_command
from calib_tools.jobs import end, make_executor, run_command, run_jobs
from calib_workflows.inference.images import MAPS, ImageFolder
from calib_workflows.options import read_as_typed

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
    """See `calib_tools.commands.run_cases`."""
    check_choice("command", command, ["infer"])
    for name in SET_PER_SHARE:
        if name in overrides:
            raise InputError(f"--{name} is set for each share. Use --workers or --jobs.")
    file = bundle / "configs" / "inference.yaml"
    options = {
        "bundle_root": str(bundle),
        "dataset_dir": str(dataset_dir),
        "output_dir": str(output_dir),
        **json.loads(json.dumps(overrides)),  # lists instead of tuples, as in YAML
        "skip_existing": True,
    }
    images = _find_images(file, options)
    total, pattern = len(images.find()), f"*_{MAPS[images.save[0]]}.nii.gz"
    logs = output_dir / ".run_cases"
    pool = make_executor(executor, workers, logs / "slurm", slurm)
    number = min(total, workers if executor == "local" else jobs)
    if executor == "local":  # PyTorch would take all cores for each
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
    make_folder(logs)
    shares = {}
    for i in range(1, number + 1):
        typed = bundle_command([file], {**options, "shard": f"{i}/{number}"})
        log = logs / f"share_{i}_of_{number}.log"
        shares[f"share {i} of {number}"] = partial(run_command, [sys.executable, *typed[1:]], log)
    failed = run_jobs(shares, pool, total, lambda: sum(1 for _ in output_dir.glob(pattern)))
    if len(failed) < number:
        print(images.write_table())  # of all shares
    end(f"{number - len(failed)} of {number} shares are finished", failed)


def _find_images(file: Path, options: Mapping[str, Any]) -> ImageFolder:
    """Return the images of a configuration with options, once they are checked."""
    config = ConfigParser()
    with reading(file, "a configuration of the bundle"):
        config.read_config(str(file))
        config.update(dict(options))
        read_as_typed(config)
        images = config.get_parsed_content("images")
    images.check()
    return images
