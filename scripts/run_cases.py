"""Segment many images, or evaluate many cases, one by one: on this machine, or as an array of Slurm jobs.

    python scripts/run_cases.py infer BUNDLE --dataset_dir SCANS --output_dir OUT \
      --executor slurm --slurm "{partition: gpu, gpus_per_node: 1, time: 60}" --jobs 50
    python scripts/run_cases.py evaluate BUNDLE --dataset_dir PREPARED --output_dir EVALUATION --workers 2

The same command continues after an interruption. `docs/many_cases.md` has the rest.
"""

from __future__ import annotations

from calib_components.tools import cli
from calib_components.tools.many_cases import evaluate, infer

if __name__ == "__main__":
    cli.run("run_cases", {"infer": infer, "evaluate": evaluate})
