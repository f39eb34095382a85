"""Write ACDC as a data set of nnU-Net, with folds by patient.

    python study/tables/nnunet_acdc.py ACDC --dataset_id 27

nnU-Net has a converter of its own, `nnunetv2.dataset_conversion.Dataset027_ACDC`. In version 2.8.1
it ends with an error: it calls `nnUNet_raw.replace`, but `nnUNet_raw` is no longer a string.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for a clone that is not installed

from calib_components.errors import InputError, check_count, reading, writing, writing_folder
from calib_tools import cli
from calib_tools.nnunet.calibrate import SPLITS, folder_of
from calib_tools.prepare.acdc import LAYOUT, find_cases
from calib_tools.prepare.case import SourceCase, require_cases
from calib_tools.prepare.split import split_folds

FOLDS = 5  # of nnU-Net's cross-validation
DESCRIPTION = {
    "channel_names": {"0": "cineMRI"},
    "labels": {"background": 0, "RV": 1, "MYO": 2, "LV": 3},
    "file_ending": ".nii.gz",
    "reference": "Bernard et al., IEEE TMI 2018",
    "licence": "CC BY-NC-SA 4.0",
}


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
    _check_number_is_free(dataset_id, raw, preprocessed)
    training, testing = _read_cases(src)
    splits = preprocessed / name / SPLITS
    with writing_folder(raw / name) as folder:
        _copy_cases(training, folder, "Tr")
        _copy_cases(testing, folder, "Ts")
        description = {**DESCRIPTION, "numTraining": len(training)}
        (folder / "dataset.json").write_text(json.dumps(description, indent=1))
        splits.parent.mkdir()
        with writing(splits) as file:
            file.write_text(json.dumps(_make_folds(training, seed), indent=1))
    patients = len({case.patient for case in training})
    print(
        f"{raw / name}: {len(training)} cases of {patients} patients to train on, {len(testing)}"
        " to test on"
    )
    print(f"{splits}: {FOLDS} folds by patient")


def _check_number_is_free(dataset_id: int, *places: Path) -> None:
    for place in places:
        if present := sorted(place.glob(f"Dataset{dataset_id:03d}_*")):
            raise InputError(
                f"dataset_id {dataset_id} is taken by {present[0]}. Choose another number."
            )


def _read_cases(src: Path) -> tuple[list[SourceCase], list[SourceCase]]:
    """Return the cases to train on and those to test on, which are complete and of other
    patients.
    """
    training = list(require_cases(find_cases, src, LAYOUT))
    testing = list(find_cases(src / "testing")) if (src / "training").is_dir() else []
    patients = {case.patient for case in training}
    check_count(f"{src}: the number of patients", len(patients), FOLDS)
    if both := sorted(patients & {case.patient for case in testing}):
        raise InputError(f"{src}: patient {both[0]} is in training and in testing.")
    for case in (*training, *testing):
        if case.problem:
            raise InputError(case.problem)
        if not all(file.is_file() for file in (*case.images, case.label)):
            raise InputError(f"{src}: {case.name} lacks its image or label.")
    return training, testing


def _make_folds(cases: Sequence[SourceCase], seed: int) -> list[dict[str, list[str]]]:
    """Return the folds as nnU-Net reads them, stratified by diagnosis."""
    folds = []
    for split in split_folds({case.patient: case.group for case in cases}, FOLDS, seed):
        validation = sorted(case.name for case in cases if split[case.patient] == "testing")
        training = sorted(case.name for case in cases if split[case.patient] != "testing")
        folds.append({"train": training, "val": validation})
    return folds


def _copy_cases(cases: Sequence[SourceCase], folder: Path, part: str) -> None:
    """Copy images and labels into `imagesPART` and `labelsPART`, compressed."""
    images, labels = folder / f"images{part}", folder / f"labels{part}"
    images.mkdir()
    labels.mkdir()
    for case in tqdm(cases, f"copy {part}", leave=False, disable=None):
        _compress(case.images[0], images / f"{case.name}_0000.nii.gz")
        _compress(case.label, labels / f"{case.name}.nii.gz")


def _compress(source: Path, target: Path) -> None:
    with reading(source):
        content = source.read_bytes()
    is_compressed = source.suffix.lower() == ".gz"
    target.write_bytes(content if is_compressed else gzip.compress(content))


if __name__ == "__main__":
    cli.run("nnunet_acdc", make_acdc)
