"""ACDC 2017: `training/patientNNN/patientNNN_frameFF[_gt].nii.gz` and `Info.cfg`."""

from __future__ import annotations

import re
from pathlib import Path

from calib_tools.prepare.case import SourceCase, nifti_file

LAYOUT = "training/patientNNN/Info.cfg or patientNNN/Info.cfg"


def find_cases(src: Path) -> list[SourceCase]:
    """List two frames of every `patientNNN` in `training` or, if there is no such folder, in `src`
    itself.

    Cases are grouped by the diagnosis in `Info.cfg`.
    """
    root = src / "training" if (src / "training").is_dir() else src
    cases = []
    for folder in sorted(path for path in root.glob("patient*") if path.is_dir()):
        patient, info_file = folder.name, folder / "Info.cfg"
        try:
            text = info_file.read_text("utf-8-sig", "replace")
            info = dict(re.findall(r"^\s*(\w+)\s*:\s*(.*?)\s*$", text, flags=re.MULTILINE))
            frames = {f"{patient}_frame{int(info[phase]):02d}" for phase in ("ED", "ES")}
        except (OSError, KeyError, ValueError):
            problem = f"{info_file}: cannot read the lines 'ED: FRAME' and 'ES: FRAME'."
            cases.append(SourceCase(patient, patient, problem=problem))
            continue
        for frame in frames:
            image, label = nifti_file(folder, frame), nifti_file(folder, f"{frame}_gt")
            cases.append(SourceCase(frame, patient, info.get("Group", ""), (image,), label))
    return cases
