"""FLARE 2021: `TrainingImg/NAME_0000.nii.gz` and `TrainingMask/NAME.nii.gz`."""

from __future__ import annotations

from pathlib import Path

from calib_tools.prepare.case import SourceCase, find_pairs

LAYOUT = "TrainingImg/NAME_0000.nii.gz and TrainingMask/NAME.nii.gz"


def find_cases(src: Path) -> list[SourceCase]:
    """List every name that has an image in `TrainingImg` or a label in `TrainingMask`."""
    return find_pairs(src / "TrainingImg", src / "TrainingMask", ["_0000"])
