"""BraTS 2019 to 2021: `NAME_{flair,t1,t1ce,t2,seg}.nii.gz` at any depth."""

from __future__ import annotations

import re
from pathlib import Path

from calib_tools.prepare.case import SourceCase, nifti_file, nifti_files
from calib_tools.prepare.facts import facts_of_dataset
from calib_workflows.data.files import files_below

LAYOUT = "NAME_flair.nii.gz at any depth"


def find_cases(src: Path) -> list[SourceCase]:
    """List the cases by their files; the group is HGG or LGG if a folder is called so."""
    suffixes = facts_of_dataset("brats", src).file_suffixes
    pattern = re.compile(rf"(.+)({'|'.join(suffixes)}|_seg)")
    cases = []
    for folder in sorted({file.parent for file in files_below(src)}):
        grades = [part for part in folder.relative_to(src).parts if part in ("HGG", "LGG")]
        matches = [pattern.fullmatch(name) for name in nifti_files(folder)]
        for name in sorted({match[1] for match in matches if match}):
            images = tuple(nifti_file(folder, name + suffix) for suffix in suffixes)
            label = nifti_file(folder, f"{name}_seg")
            cases.append(SourceCase(name, name, next(iter(grades), ""), images, label))
    return cases
