"""Fit a temperature on saved predictions of any model, and scale its other predictions by it.

    python scripts/calibrate_predictions.py VALIDATION LABELS --apply_to TEST --out scaled
    --structures RV=1,MYO=2,LV=3

reads the probabilities that a network saved for validation cases, and their labels; prints the
temperature, its 95 % interval over patients and what to know of it; and writes a scaled map for
each prediction in TEST, and `scaled/temperature.json`. The network itself is not needed.
"""

from __future__ import annotations

from calib_tools import cli, commands

if __name__ == "__main__":
    cli.run("calibrate_predictions", commands.calibrate_predictions)
