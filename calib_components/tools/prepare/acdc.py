"""ACDC 2017: `training/patientNNN/patientNNN_frameFF[_gt].nii.gz` and `Info.cfg`."""

from __future__ import annotations

import re
from pathlib import Path

from calib_components.tools.prepare.case import Case, list_folder, nifti_file
from calib_components.tools.prepare.command import dataset_command


def find_cases(src: Path) -> list[Case]:
    """Find two frames of every `patientNNN` in `training` or, if there is no such folder, in `src` itself.

    Cases are grouped by the diagnosis in `Info.cfg`.
    """
    root = src / "training" if (src / "training").is_dir() else src
    cases = []
    for folder in list_folder(root):
        patient = folder.name
        if not re.fullmatch(r"patient\d+", patient) or folder.is_file():
            continue
        info_file = folder / "Info.cfg"
        try:
            text = info_file.read_text("utf-8-sig", "replace")
            info = dict(re.findall(r"^\s*(\w+)\s*:\s*(.*?)\s*$", text, flags=re.MULTILINE))
            frames = {f"{patient}_frame{int(info[phase]):02d}" for phase in ("ED", "ES")}
        except OSError as error:
            cases.append(Case(patient, patient, problem=f"{info_file}: expected a readable file, got {error.strerror}"))
        except (KeyError, ValueError):
            problem = f"{info_file}: expected the lines 'ED: FRAME' and 'ES: FRAME', got a file without them"
            cases.append(Case(patient, patient, problem=problem))
        else:
            for frame in frames:
                images = (nifti_file(folder, frame),)
                cases.append(Case(frame, patient, info.get("Group", ""), images, nifti_file(folder, f"{frame}_gt")))
    return cases


prepare_acdc = dataset_command(
    "acdc",
    find_cases,
    layout="training/patientNNN/Info.cfg or patientNNN/Info.cfg",
    summary="Prepare ACDC 2017 (cardiac cine MR), stratified by diagnosis.",
    src="Folder that holds `training`, or a folder of `patientNNN` itself, such as `testing` of the download.",
)
