"""Your own data: `images/NAME.nii.gz` and `labels/NAME.nii.gz`."""

from __future__ import annotations

from pathlib import Path

from calib_components.errors import InputError
from calib_components.tools.prepare.case import Case, find_pairs

LAYOUT = "images/NAME.nii.gz and labels/NAME.nii.gz"


def find_cases(src: Path) -> list[Case]:
    """List every name that has an image in `images` or a label in `labels`."""
    if (src / "imagesTr").is_dir():
        raise InputError(
            f"{src}: has the layout of the Medical Segmentation Decathlon. Name it msd in place of generic."
        )
    return find_pairs(src / "images", src / "labels")
