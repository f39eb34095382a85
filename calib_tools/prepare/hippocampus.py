"""Medical Segmentation Decathlon, Task04: `hippocampus_NNN.nii.gz` in `imagesTr` and `labelsTr`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from calib_tools.prepare.case import SourceCase, find_pairs

LAYOUT = "imagesTr/hippocampus_NNN.nii.gz and labelsTr/hippocampus_NNN.nii.gz"


def find_cases(src: Path) -> list[SourceCase]:
    """List the labelled cases; 2k - 1 and 2k are the two sides of patient k."""
    return [_with_patient(case) for case in find_pairs(src / "imagesTr", src / "labelsTr")]


def _with_patient(case: SourceCase) -> SourceCase:
    match = re.fullmatch(r"hippocampus_(\d+)", case.name)
    if match is None:
        problem = f"{case.label}: not called hippocampus_NNN, which tells the patient."
        return replace(case, problem=problem)
    return replace(case, patient=f"patient{(int(match[1]) + 1) // 2:03d}")
