"""A data set of nnU-Net: `imagesTr/NAME_0000.nii.gz`, a file for each channel,
`labelsTr/NAME.nii.gz` and `dataset.json` of its version 2.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from calib_components.errors import reading
from calib_components.tools.prepare.case import SourceCase, find_pairs

LAYOUT = "imagesTr/NAME_0000.nii.gz, labelsTr/NAME.nii.gz and dataset.json"


def find_cases(src: Path) -> list[SourceCase]:
    """List every name that has an image in `imagesTr` or a label in `labelsTr`."""
    return find_pairs(src / "imagesTr", src / "labelsTr", read_task(src)["file_suffixes"])


def read_task(src: Path) -> dict[str, Any]:
    """Return the structures, as `--structures` names them, the number of channels and the suffixes
    of their files.
    """
    with reading(src / "dataset.json", "the description of nnU-Net's data") as file:
        task = json.loads(file.read_bytes())
        channels = len(task["channel_names"])
        structures = [
            f"{name}={code}"  # which is refused for regions, lists of codes
            for name, code in task["labels"].items()
            if name not in ("background", "ignore")
        ]
    return {
        "structures": structures,
        "in_channels": channels,
        "file_suffixes": [f"_{channel:04d}" for channel in range(channels)],
    }
