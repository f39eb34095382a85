"""ACDC as a data set of nnU-Net, with folds by patient.

nnU-Net has a converter of its own, `nnunetv2.dataset_conversion.Dataset027_ACDC`. In version 2.8.1 it ends with an
error: it calls `nnUNet_raw.replace`, but `nnUNet_raw` is no longer a string.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from calib_components.errors import UNFINISHED, InputError, make_folder, reading, writing
from calib_components.tools.nnunet.environment import folder_of
from calib_components.tools.prepare.acdc import find_cases
from calib_components.tools.prepare.case import Case
from calib_components.tools.prepare.command import require_cases
from calib_components.tools.prepare.facts import facts_of_dataset
from calib_components.tools.prepare.split import divide

__all__ = ["make_acdc"]

FOLDS = 5  # of nnU-Net's cross-validation
SPLITS = "splits_final.json"  # where nnU-Net looks for the folds
ENDING = ".nii.gz"
LARGEST_ID = 999


def make_acdc(src: Path, *, dataset_id: int = 27, seed: int = 0) -> None:
    """Write ACDC 2017 as a data set of nnU-Net, with five folds by patient.

    `$nnUNet_raw/DatasetNNN_ACDC` gets the two frames of each patient in `training` as `imagesTr` and `labelsTr`, those
    in `testing`, if the download has it, as `imagesTs` and `labelsTs`, and `dataset.json`. The folds, stratified by
    diagnosis, are in `$nnUNet_preprocessed/DatasetNNN_ACDC/splits_final.json`, where nnU-Net looks for them.

    Args:
        src: Folder that holds `training` and perhaps `testing`.
        dataset_id: Number of the data set, 1 to 999.
        seed: Seed of the folds.

    Raises:
        InputError: There are no cases, one is incomplete, there are fewer than five patients, there already is a data
            set or a split of this number, or a folder cannot be written.
    """
    if not 1 <= dataset_id <= LARGEST_ID:
        raise InputError(f"--dataset_id: expected 1 to {LARGEST_ID}, got {dataset_id}")
    raw, preprocessed = folder_of("nnUNet_raw"), folder_of("nnUNet_preprocessed")
    if raw.resolve() == preprocessed.resolve():
        raise InputError(f"nnUNet_preprocessed: expected another folder than that of nnUNet_raw, got {raw} for both")
    name = f"Dataset{dataset_id:03d}_ACDC"
    training = require_cases(find_cases, src, "training/patientNNN/Info.cfg or patientNNN/Info.cfg")
    testing = find_cases(src / "testing") if (src / "training").is_dir() else []
    groups = {case.patient: case.group for case in training}
    if len(groups) < FOLDS:
        raise InputError(f"{src}: expected at least {FOLDS} patients, for {FOLDS} folds, got {len(groups)}")
    if both := sorted(groups.keys() & {case.patient for case in testing}):
        raise InputError(f"{src / 'testing'}: expected other patients than in training, got {both[0]}")
    for case in (*training, *testing):
        _check_complete(case)
    for place in (raw, preprocessed):
        if present := sorted(place.glob(f"Dataset{dataset_id:03d}_*")):
            raise InputError(f"--dataset_id: expected a number that is not used yet, got {dataset_id}: {present[0]}")

    unfinished, unfinished_split = (place / f"{UNFINISHED}{name}" for place in (raw, preprocessed))
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        for part, cases in (("Tr", training), ("Ts", testing)):
            _copy(cases, unfinished / f"images{part}", unfinished / f"labels{part}")
        with writing(unfinished / "dataset.json") as file:
            file.write_text(json.dumps(_description(len(training), src), indent=1))
        make_folder(unfinished_split)
        with writing(unfinished_split / SPLITS) as file:
            file.write_text(json.dumps(_folds(training, groups, seed), indent=1))
        unfinished.replace(raw / name)
        try:
            unfinished_split.replace(preprocessed / name)
        except OSError:
            shutil.rmtree(raw / name)  # another run would be refused
            raise
    finally:
        for folder in (unfinished, unfinished_split):
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{raw / name}: {len(training)} cases of {len(groups)} patients to train on, {len(testing)} to test on")
    print(f"{preprocessed / name / SPLITS}: {FOLDS} folds by patient")


def _check_complete(case: Case) -> None:
    if case.problem:
        raise InputError(case.problem)
    for file in (*case.images, case.label):
        if not file.is_file():
            raise InputError(f"{file}: expected a NIfTI file, got no such file")


def _copy(cases: Sequence[Case], images: Path, labels: Path) -> None:
    """Copy images and labels under the names that nnU-Net expects."""
    make_folder(images)
    make_folder(labels)
    for case in tqdm(cases, images.name, leave=False, disable=None):
        for source, target in (
            (case.images[0], images / f"{case.name}_0000{ENDING}"),
            (case.label, labels / f"{case.name}{ENDING}"),
        ):
            with reading(source, "a readable file"):
                content = source.read_bytes()
            with writing(target) as file:
                file.write_bytes(content if source.suffix.lower() == ".gz" else gzip.compress(content))


def _description(cases: int, src: Path) -> dict:
    """What nnU-Net's `dataset.json` says."""
    facts = facts_of_dataset("acdc", src)
    labels = {name: facts.label_codes[index] for name, (index,) in facts.structures.items()}
    return {
        "channel_names": {"0": "cineMRI"},
        "labels": {"background": 0, **labels},
        "numTraining": cases,
        "file_ending": ENDING,
        "reference": "Bernard et al., IEEE TMI 2018",
        "licence": "CC BY-NC-SA 4.0",
    }


def _folds(cases: Sequence[Case], groups: Mapping[str, str], seed: int) -> list[dict[str, list[str]]]:
    """The cases that each fold trains on and validates on."""
    names = sorted(case.name for case in cases)
    patients = {case.name: case.patient for case in cases}
    parts = divide(groups, [1 / FOLDS] * FOLDS, seed)
    return [
        {
            "train": [name for name in names if patients[name] not in part],
            "val": [name for name in names if patients[name] in part],
        }
        for part in parts
    ]
