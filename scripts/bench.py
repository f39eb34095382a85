"""Benchmarks: each command prints tables whose rows are ratios measured interleaved in one run.

python scripts/bench.py losses [--device cuda] [--rounds 15] [--threads 2]
python scripts/bench.py evaluation [--device cuda]
python scripts/bench.py objects [--size 512] [--slices 300] [--number 2000]
python scripts/bench.py inference [--size 512] [--slices 600] [--num_classes 5]
"""

from __future__ import annotations

import sys
from pathlib import Path

# For this folder, and a clone that is not installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from calib_tools import cli
from scripts.helpers.commands import evaluation, inference, losses, objects

if __name__ == "__main__":
    commands = (losses, evaluation, objects, inference)
    cli.run("bench", {command.__name__: command for command in commands})
