"""Benchmarks: each command prints tables whose rows are ratios measured interleaved in one run.

python scripts/bench.py losses [--device cuda] [--rounds 15] [--threads 2]
python scripts/bench.py metrics [--device cuda]
python scripts/bench.py evaluation [--device cuda]
python scripts/bench.py posthoc [--device cuda]
python scripts/bench.py train [--device cuda]
python scripts/bench.py inference [--size 512] [--slices 600] [--num_classes 5] [--whole]
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import fire

from calib_components.tools import benchmarks

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"

if __name__ == "__main__":
    fire.Fire(
        {
            "losses": benchmarks.losses,
            "metrics": benchmarks.metrics,
            "evaluation": partial(benchmarks.evaluation, BUNDLES / "acdc_mri_nacl_segmentation"),
            "posthoc": benchmarks.posthoc,
            "train": partial(benchmarks.train, BUNDLES / "acdc_mri_nacl_segmentation"),
            "inference": partial(benchmarks.inference, BUNDLES / "flare_ct_nacl_segmentation"),
        }
    )
