"""Your own data: `images/NAME.nii.gz` and `labels/NAME.nii.gz`, whose names may have the usual
suffixes.
"""

from __future__ import annotations

from pathlib import Path

from calib_tools.prepare.case import SourceCase, find_pairs, nifti_files

FIRST_CHANNEL = "_0000"  # at the end of the names of images, as nnU-Net has them
LAYOUT = "images/NAME.nii.gz and labels/NAME.nii.gz, with imagesTr it is nnunet or msd"


def find_cases(src: Path) -> list[SourceCase]:
    """List every name that has an image in `images` or a label in `labels`, see `find_pairs`."""
    names = nifti_files(src / "images")
    is_named_as_in_nnunet = bool(names) and all(name.endswith(FIRST_CHANNEL) for name in names)
    suffix = FIRST_CHANNEL if is_named_as_in_nnunet else ""
    return find_pairs(src / "images", src / "labels", [suffix])
