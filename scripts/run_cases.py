r"""Segment many images, or evaluate many cases, in shares: on this machine, or as an array of Slurm
jobs.

    python scripts/run_cases.py infer BUNDLE --dataset_dir SCANS --output_dir OUT \
      --executor slurm --slurm "{partition: gpu, gpus_per_node: 1, time: 60}" --jobs 50
    python scripts/run_cases.py evaluate BUNDLE --dataset_dir PREPARED --output_dir EVALUATION \
      --workers 2
"""

from __future__ import annotations

from calib_tools import cli

if __name__ == "__main__":
    cli.run("run_cases", "calib_tools.run_cases:run_cases")
