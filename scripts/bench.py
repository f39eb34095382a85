"""Benchmarks: each command prints tables whose rows are ratios measured interleaved in one run.

python scripts/bench.py losses [--device cuda] [--rounds 15] [--threads 2] python scripts/bench.py
metrics [--device cuda] python scripts/bench.py evaluation [--device cuda] python scripts/bench.py
posthoc [--device cuda] python scripts/bench.py train [--device cuda] python scripts/bench.py
inference [--size 512] [--slices 600] [--num_classes 5] [--whole] [--patch 96]
"""

from __future__ import annotations

import sys
from pathlib import Path

# For this folder, and a clone that is not installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from calib_components.tools import cli
from scripts import benchmarks

if __name__ == "__main__":
    cli.run("bench", {name: getattr(benchmarks, name) for name in benchmarks.__all__})
