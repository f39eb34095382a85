"""BraTS 2019 to 2021: `NAME_{flair,t1,t1ce,t2,seg}.nii.gz` at any depth."""

from __future__ import annotations

import re
from pathlib import Path

from calib_components.data.nifti import files_below
from calib_components.tools.prepare.case import NIFTI, Case, nifti_file
from calib_components.tools.prepare.facts import facts_of_dataset

LAYOUT = "NAME_flair.nii.gz at any depth"


def find_cases(src: Path) -> list[Case]:
    """List the cases by their files; the group is HGG or LGG if a folder is called so."""
    suffixes = facts_of_dataset("brats", src).file_suffixes
    file_name = re.compile(rf"(.+)({'|'.join(suffixes)}|_seg){NIFTI}", re.IGNORECASE)
    cases = {}
    for file in files_below(src):
        if match := file_name.fullmatch(file.name):
            folder, name = file.parent, match[1]
            group = next(
                (part for part in folder.relative_to(src).parts if part in ("HGG", "LGG")), ""
            )
            images = tuple(nifti_file(folder, name, suffix) for suffix in suffixes)
            cases[folder, name] = Case(name, name, group, images, nifti_file(folder, name, "_seg"))
    return list(cases.values())
