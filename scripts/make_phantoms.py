"""Make a small data set of short-axis hearts in the layout of ACDC, to try things out without a download.

    python scripts/make_phantoms.py OUT --patients 20 --seed 0

Each patient has a left ventricle (bright disc), its myocardium (dark ring) and a right ventricle (bright crescent) at
end-diastole and end-systole, in a chest with other bright structures, noise and a bias field. The borders of the label
deviate at random from those of the image, like those of a rater who errs: no network can be certain there, so
calibration can be measured. The five groups of ACDC differ, exaggeratedly, in cavity, wall and contraction.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for this folder, and a clone that is not installed

from calib_components.tools import cli
from scripts.benchmarks.phantoms import make_phantoms

if __name__ == "__main__":
    cli.run("make_phantoms", make_phantoms)
