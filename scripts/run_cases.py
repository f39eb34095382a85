r"""Segment many images in shares: on this machine, or as an array of Slurm jobs.

    python scripts/run_cases.py infer BUNDLE --dataset_dir SCANS --output_dir OUT \
      --executor slurm --slurm "{partition: gpu, gpus_per_node: 1, time: 60}" --jobs 50
"""

from __future__ import annotations

from calib_tools import cli, commands

if __name__ == "__main__":
    cli.run("run_cases", commands.run_cases)
