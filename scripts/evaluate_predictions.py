"""Evaluate saved predictions of any model against label maps: is it calibrated, and where not.

    python scripts/evaluate_predictions.py PREDICTIONS LABELS --out evaluation --structures
    RV=1,MYO=2,LV=3

reads the probabilities that a network saved, such as nnU-Net with `--save_probabilities`, and
writes one page, `evaluation/report/index.html`, and the files that a bundle's evaluation writes.
`scripts/report.py A B C` compares such folders. Without LABELS, `evaluation/quality.html` shows
which predictions to check, from their probabilities alone.
"""

from __future__ import annotations

from calib_tools import cli, commands

if __name__ == "__main__":
    cli.run("evaluate_predictions", commands.evaluate_predictions)
