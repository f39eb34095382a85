"""ACDC as a data set of nnU-Net: its files, its description and its folds."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest

from calib_components.errors import InputError
from study.tables.nnunet_acdc import make_acdc
from tests.helpers import make_acdc as make_download

CASES = [f"patient{patient:03d}_frame{frame}" for patient in range(1, 8) for frame in ("01", "09")]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders of nnU-Net, which environment variables name."""
    for name in ("raw", "preprocessed"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path


@pytest.fixture
def src(folders: Path) -> Path:
    """The download: seven patients to train on, two to test on; one file is not compressed."""
    src = make_download(folders / "src", 7)
    for patient in ("patient101", "patient102"):
        target = src / "testing" / patient
        shutil.copytree(src / "training" / "patient001", target)
        for file in target.glob("patient001*"):
            file.rename(target / file.name.replace("patient001", patient))
    file = src / "training" / "patient002" / "patient002_frame01.nii.gz"
    file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
    file.unlink()
    return src


def test_files_description_and_folds(src: Path, folders: Path) -> None:
    left = folders / "raw" / ".unfinished-Dataset027_ACDC" / "imagesTr" / "of_a_killed_run.nii.gz"
    left.parent.mkdir(parents=True)
    left.touch()
    make_acdc(src)
    raw = folders / "raw" / "Dataset027_ACDC"
    expected = {"dataset.json"}
    test = [f"patient{patient}_frame{frame}" for patient in (101, 102) for frame in ("01", "09")]
    for part, cases in (("Tr", CASES), ("Ts", test)):
        expected |= {f"images{part}/{case}_0000.nii.gz" for case in cases}
        expected |= {f"labels{part}/{case}.nii.gz" for case in cases}
    assert {str(file.relative_to(raw)) for file in raw.rglob("*") if file.is_file()} == expected
    assert not left.exists()
    label = src / "testing" / "patient102" / "patient102_frame01_gt.nii.gz"
    assert (raw / "labelsTs" / "patient102_frame01.nii.gz").read_bytes() == label.read_bytes()
    compressed = (raw / "imagesTr" / "patient002_frame01_0000.nii.gz").read_bytes()
    assert (
        gzip.decompress(compressed)
        == (src / "training" / "patient002" / "patient002_frame01.nii").read_bytes()
    )
    description = json.loads((raw / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "RV": 1, "MYO": 2, "LV": 3}
    assert (description["numTraining"], description["file_ending"]) == (14, ".nii.gz")
    folds = json.loads(
        (folders / "preprocessed" / "Dataset027_ACDC" / "splits_final.json").read_text()
    )
    assert sorted(case for fold in folds for case in fold["val"]) == CASES
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == CASES
        assert not {case[:10] for case in fold["train"]} & {case[:10] for case in fold["val"]}


@pytest.mark.parametrize(
    "word", ["taken", "patients", "in training and in testing", "label", "nnUNet_raw"]
)
def test_what_is_refused(
    word: str, src: Path, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = src / "training"
    if word == "taken":
        (folders / "preprocessed" / "Dataset027_Other").mkdir()
    elif word == "patients":
        for number in (4, 5, 6, 7):
            shutil.rmtree(training / f"patient00{number}")
    elif word == "in training and in testing":
        shutil.copytree(training / "patient001", src / "testing" / "patient001")
    elif word == "label":
        (training / "patient003" / "patient003_frame09_gt.nii.gz").unlink()
    elif word == "nnUNet_raw":
        monkeypatch.delenv("nnUNet_raw")
    with pytest.raises(InputError, match=word):
        make_acdc(src)
    assert not list((folders / "raw").iterdir())
