"""A task of the Medical Segmentation Decathlon: `imagesTr/NAME.nii.gz`, `labelsTr/NAME.nii.gz` and
`dataset.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from calib_components.errors import InputError, reading
from calib_components.tools.prepare.case import SourceCase, find_pairs

LAYOUT = "imagesTr/NAME.nii.gz and labelsTr/NAME.nii.gz"


def find_cases(src: Path) -> list[SourceCase]:
    """List every name that has an image in `imagesTr` or a label in `labelsTr`."""
    return find_pairs(src / "imagesTr", src / "labelsTr")


def read_task(src: Path) -> dict[str, Any]:
    """Return the structures, as `--structures` names them, and the number of channels in
    `dataset.json`, if there.
    """
    file = src / "dataset.json"
    if not file.is_file():
        return {}
    with reading(file, "the description of a task"):
        task = json.loads(file.read_bytes())
        if "channel_names" in task:
            raise InputError(f"{file} is of nnU-Net. Name the data set nnunet.")
        structures = [
            f"{name}={int(code)}" for code, name in task["labels"].items() if int(code) != 0
        ]
        return {"structures": structures, "in_channels": max(1, len(task.get("modality", {})))}
