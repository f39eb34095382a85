"""A task of the Medical Segmentation Decathlon: `imagesTr/NAME.nii.gz`, `labelsTr/NAME.nii.gz` and
`dataset.json`; or raw data of nnU-Net, whose images are `imagesTr/NAME_0000.nii.gz`, a file for
each channel.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from calib_components.errors import reading
from calib_tools.prepare.case import SourceCase, find_pairs
from calib_workflows.data.files import files_below, split_name

LAYOUT = "imagesTr/NAME.nii.gz (of nnU-Net, NAME_0000.nii.gz) and labelsTr/NAME.nii.gz"
OF_NNUNET = "channel_names"  # in its description; that of the Decathlon has `modality`


def find_cases(src: Path) -> list[SourceCase]:
    """List every name that has an image in `imagesTr` or a label in `labelsTr`."""
    suffixes = read_task(src).get("file_suffixes") or [""]
    return find_pairs(src / "imagesTr", src / "labelsTr", suffixes)


def read_task(src: Path) -> dict[str, Any]:
    """Return the name, the structures, as `--structures` names them, the number of channels, the
    suffixes of their files and the code of voxels that do not count in `dataset.json`; without one,
    the number and the suffixes of channels that names of files as those of nnU-Net tell.
    """
    file = src / "dataset.json"
    if not file.is_file():
        return _channels_of(src / "imagesTr")
    with reading(file, "the description of a task"):
        task = json.loads(file.read_bytes())
        labels, suffixes, ignored = dict(task["labels"]), [], None
        channels = max(1, len(task.get(OF_NNUNET, task.get("modality", {}))))
        if OF_NNUNET in task:
            suffixes = [f"_{channel:04d}" for channel in range(channels)]
            ignored = labels.pop("ignore", None)
        else:
            labels = {name: code for code, name in labels.items()}
        structures = [
            f"{name}={'+'.join(map(str, ensure_tuple(codes)))}"  # nnU-Net's regions have several
            for name, codes in labels.items()
            if str(codes) != "0"
        ]
    return {
        "name": str(task.get("name", "")),
        "structures": structures,
        "in_channels": channels,
        "file_suffixes": suffixes,
        "ignored_code": None if ignored is None else int(ignored),
    }


def _channels_of(folder: Path) -> dict[str, Any]:
    """Return the number and the suffixes of channels, if all images are named as by nnU-Net."""
    names = [split_name(file.name) for file in files_below(folder)]
    suffixes = sorted({name.case[-5:] for name in names if name.ending})
    if not suffixes or not all(re.fullmatch(r"_\d{4}", suffix) for suffix in suffixes):
        return {}
    return {"in_channels": len(suffixes), "file_suffixes": suffixes}
