"""ACDC as a data set of nnU-Net, with folds by patient.

nnU-Net has a converter of its own, `nnunetv2.dataset_conversion.Dataset027_ACDC`. In version 2.8.1
it ends with an error: it calls `nnUNet_raw.replace`, but `nnUNet_raw` is no longer a string.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

from tqdm import tqdm

from calib_components.errors import InputError, check_count, reading, writing, writing_folder
from calib_components.tools.prepare.acdc import LAYOUT, find_cases
from calib_components.tools.prepare.case import require_cases
from calib_components.tools.prepare.split import divide

FOLDS = 5  # of nnU-Net's cross-validation
SPLITS = "splits_final.json"  # where nnU-Net looks for the folds


def folder_of(variable: str) -> Path:
    """Return the folder that an environment variable of nnU-Net names."""
    value = os.environ.get(variable, "")
    if not (value and Path(value).is_dir()):
        raise InputError(
            f"{variable} must name a folder, as nnU-Net's environment variable, got {value!r}."
        )
    return Path(value)


def make_acdc(src: Path, *, dataset_id: int = 27, seed: int = 0) -> None:
    """Write ACDC 2017 as a data set of nnU-Net, with five folds by patient.

    `$nnUNet_raw/DatasetNNN_ACDC` gets the two frames of each patient in `training` as `imagesTr`
    and `labelsTr`, those in `testing`, if the download has it, as `imagesTs` and `labelsTs`, and
    `dataset.json`. The folds, stratified by diagnosis, are in
    `$nnUNet_preprocessed/DatasetNNN_ACDC/splits_final.json`, where nnU-Net looks for them.

    Args:
        src: Folder that holds `training` and perhaps `testing`.
        dataset_id: Number of the data set, 1 to 999.
        seed: Seed of the folds.

    Raises:
        InputError: The download is incomplete, or there already is a data set or a split of this
            number.
    """
    check_count("dataset_id", dataset_id, 1, 999)
    raw, preprocessed = folder_of("nnUNet_raw"), folder_of("nnUNet_preprocessed")
    name = f"Dataset{dataset_id:03d}_ACDC"
    for place in (raw, preprocessed):
        if present := sorted(place.glob(f"Dataset{dataset_id:03d}_*")):
            raise InputError(
                f"dataset_id {dataset_id} is taken by {present[0]}. Choose another number."
            )
    training = require_cases(find_cases, src, LAYOUT)
    testing = find_cases(src / "testing") if (src / "training").is_dir() else []
    groups = {case.patient: case.group for case in training}
    check_count(f"{src}: the number of patients", len(groups), FOLDS)
    if both := sorted(groups.keys() & {case.patient for case in testing}):
        raise InputError(f"{src}: patient {both[0]} is in training and in testing.")
    for case in (*training, *testing):
        if case.problem or not all(file.is_file() for file in (*case.images, case.label)):
            raise InputError(case.problem or f"{src}: {case.name} lacks its image or label.")

    folds = [
        {
            "train": sorted(case.name for case in training if case.patient not in part),
            "val": sorted(case.name for case in training if case.patient in part),
        }
        for part in divide(groups, [1 / FOLDS] * FOLDS, seed)
    ]
    description = {
        "channel_names": {"0": "cineMRI"},
        "labels": {"background": 0, "RV": 1, "MYO": 2, "LV": 3},
        "numTraining": len(training),
        "file_ending": ".nii.gz",
        "reference": "Bernard et al., IEEE TMI 2018",
        "licence": "CC BY-NC-SA 4.0",
    }
    splits = preprocessed / name / SPLITS
    with writing_folder(raw / name) as folder:
        copies = {}
        for part, cases in (("Tr", training), ("Ts", testing)):
            for kind, suffix in (("images", "_0000"), ("labels", "")):
                (folder / f"{kind}{part}").mkdir()
                for case in cases:
                    source = case.images[0] if kind == "images" else case.label
                    copies[folder / f"{kind}{part}" / f"{case.name}{suffix}.nii.gz"] = source
        for target, source in tqdm(copies.items(), "copy", leave=False, disable=None):
            with reading(source):
                content = source.read_bytes()
            target.write_bytes(
                content if source.suffix.lower() == ".gz" else gzip.compress(content)
            )
        (folder / "dataset.json").write_text(json.dumps(description, indent=1))
        splits.parent.mkdir()
        with writing(splits) as file:
            file.write_text(json.dumps(folds, indent=1))
    print(
        f"{raw / name}: {len(training)} cases of {len(groups)} patients to train on, {len(testing)}"
        " to test on"
    )
    print(f"{splits}: {FOLDS} folds by patient")
