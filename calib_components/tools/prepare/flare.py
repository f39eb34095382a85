"""FLARE 2021: `TrainingImg/NAME_0000.nii.gz` and `TrainingMask/NAME.nii.gz`."""

from __future__ import annotations

from pathlib import Path

from calib_components.tools.prepare.case import Case
from calib_components.tools.prepare.command import dataset_command
from calib_components.tools.prepare.generic import find_pairs


def find_cases(src: Path) -> list[Case]:
    """Find every name that has an image in `TrainingImg` or a label in `TrainingMask`."""
    return find_pairs(src / "TrainingImg", "_0000", src / "TrainingMask")


prepare_flare = dataset_command(
    "flare",
    find_cases,
    layout="TrainingImg/NAME_0000.nii.gz",
    summary="Prepare FLARE 2021 (abdominal CT).",
    src="Folder that holds `TrainingImg` and `TrainingMask`.",
)
