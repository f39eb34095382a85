"""Calibrate two networks on real patients, and see what a temperature changes.

    scripts/demo            # installs what is missing, and runs this file
    scripts/demo --train    # also trains a network, on few patients

`demo/README.md` says where patients and networks come from. `demo_output`, or the folder of
`--out`, gets evaluations, calibrated weights, maps of the test patients and the picture. Run again,
all is made anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

# For a clone that is not installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from calib_tools import cli
from scripts.helpers.commands import demo

if __name__ == "__main__":
    cli.run("demo", demo)
