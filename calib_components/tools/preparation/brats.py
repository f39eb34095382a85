"""BraTS 2019 to 2021: `NAME_{flair,t1,t1ce,t2,seg}.nii.gz` at any depth."""

from __future__ import annotations

import os
import re
from pathlib import Path

from calib_components.errors import InputError
from calib_components.tools.preparation.case import NIFTI, Case, nifti_file
from calib_components.tools.preparation.command import dataset_command
from calib_components.tools.preparation.facts import facts_of_dataset


def find_cases(src: Path) -> list[Case]:
    """Find the cases by their files; the group is HGG or LGG if a folder is called so."""
    suffixes = facts_of_dataset("brats", src).file_suffixes
    file_name = re.compile(rf"([^.].*)({'|'.join(suffixes)}|_seg){NIFTI}", re.IGNORECASE | re.DOTALL)
    cases = {}
    seen = set()  # folders may be links, also to one around them
    for path, folders, names in os.walk(src, onerror=_refuse, followlinks=True):
        folder = Path(path)
        if (real := folder.resolve()) in seen:
            folders.clear()
            continue
        seen.add(real)
        group = next((part for part in folder.relative_to(src).parts if part in ("HGG", "LGG")), "")
        for match in filter(None, map(file_name.fullmatch, names)):
            name = match[1]
            images = tuple(nifti_file(folder, name + suffix) for suffix in suffixes)
            cases[folder, name] = Case(name, name, group, images, nifti_file(folder, f"{name}_seg"))
    return list(cases.values())


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename}: expected a readable folder, got {error.strerror}")


prepare_brats = dataset_command(
    "brats",
    find_cases,
    layout="NAME_flair.nii.gz at any depth",
    summary="Prepare BraTS 2019 to 2021 (brain MR: FLAIR, T1, T1ce, T2), stratified by grade.",
    src="Folder with the cases at any depth.",
)
