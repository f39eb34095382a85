"""ACDC as a data set of nnU-Net: its files, its description and its folds."""

from __future__ import annotations

import errno
import gzip
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from calib_components.errors import InputError
from calib_components.tools.nnunet.dataset import make_acdc
from tests.helpers import make_acdc as make_download
from tests.helpers import snapshot

PATIENTS = 7
CASES = [f"patient{patient:03d}_frame{frame}" for patient in range(1, PATIENTS + 1) for frame in ("01", "09")]
NAME = "Dataset027_ACDC"


@pytest.fixture
def src(folders: Path) -> Path:
    """The download: seven patients to train on, two to test on."""
    src = make_download(folders / "src", PATIENTS)
    for patient in ("patient101", "patient102"):
        target = src / "testing" / patient
        shutil.copytree(src / "training" / "patient001", target)
        for file in target.glob("patient001*"):
            file.rename(target / file.name.replace("patient001", patient))
    return src


def folds_of(folders: Path, name: str = NAME) -> list[dict[str, list[str]]]:
    return json.loads((folders / "preprocessed" / name / "splits_final.json").read_text())


def test_one_folder_for_both_is_refused(src: Path, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_preprocessed", str(folders / "raw"))
    before = snapshot(folders)
    with pytest.raises(InputError, match=r"^nnUNet_preprocessed: expected another folder than that of nnUNet_raw, got"):
        make_acdc(src)
    assert snapshot(folders) == before


def test_files_and_description(src: Path, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_acdc(src)
    raw = folders / "raw" / NAME
    test = [f"patient{patient}_frame{frame}" for patient in (101, 102) for frame in ("01", "09")]
    expected = {"dataset.json"}
    for part, cases in (("Tr", CASES), ("Ts", test)):
        expected |= {f"images{part}/{case}_0000.nii.gz" for case in cases}
        expected |= {f"labels{part}/{case}.nii.gz" for case in cases}
    assert {str(file.relative_to(raw)) for file in raw.rglob("*") if file.is_file()} == expected
    for part, copy, case in (("training", "Tr", "patient003_frame09"), ("testing", "Ts", "patient102_frame01")):
        source = src / part / case[:10] / case
        image, label = raw / f"images{copy}" / f"{case}_0000.nii.gz", raw / f"labels{copy}" / f"{case}.nii.gz"
        assert image.read_bytes() == source.with_name(f"{case}.nii.gz").read_bytes()
        assert label.read_bytes() == source.with_name(f"{case}_gt.nii.gz").read_bytes()
    assert json.loads((raw / "dataset.json").read_text()) == {
        "channel_names": {"0": "cineMRI"},
        "labels": {"background": 0, "RV": 1, "MYO": 2, "LV": 3},
        "numTraining": 14,
        "file_ending": ".nii.gz",
        "reference": "Bernard et al., IEEE TMI 2018",
        "licence": "CC BY-NC-SA 4.0",
    }
    assert sorted(folders.glob("*/*")) == sorted(
        [folders / "preprocessed" / NAME, raw, src / "testing", src / "training"]
    )
    assert capsys.readouterr().out.splitlines() == [
        f"{raw}: 14 cases of 7 patients to train on, 4 to test on",
        f"{folders / 'preprocessed' / NAME / 'splits_final.json'}: 5 folds by patient",
    ]


def test_folds_are_by_patient_and_cover_all(src: Path, folders: Path) -> None:
    make_acdc(src)
    folds = folds_of(folders)
    assert len(folds) == 5
    for fold in folds:
        assert fold.keys() == {"train", "val"}
        assert sorted(fold["train"] + fold["val"]) == CASES
        assert not {case[:10] for case in fold["train"]} & {case[:10] for case in fold["val"]}
    assert sorted(len(fold["val"]) for fold in folds) == [2, 2, 2, 4, 4]  # cases of one or two of seven patients
    assert sorted(case for fold in folds for case in fold["val"]) == CASES
    for fold in folds:  # of the two groups, which alternate, both are in a fold of two patients
        if len(fold["val"]) == 4:
            assert {int(case[7:10]) % 2 for case in fold["val"]} == {0, 1}


def test_the_seed_decides_the_folds(src: Path, folders: Path) -> None:
    for dataset_id, seed in ((1, 0), (2, 0), (999, 1)):
        make_acdc(src, dataset_id=dataset_id, seed=seed)
    first, again, other = (folds_of(folders, f"Dataset{number}_ACDC") for number in ("001", "002", "999"))
    assert first == again != other


def test_files_that_are_not_compressed_become_so(src: Path, folders: Path) -> None:
    file = src / "training" / "patient002" / "patient002_frame01.nii"
    content = gzip.decompress(file.with_suffix(".nii.gz").read_bytes())
    file.with_suffix(".nii.gz").unlink()
    file.write_bytes(content)
    make_acdc(src)
    copy = folders / "raw" / NAME / "imagesTr" / "patient002_frame01_0000.nii.gz"
    assert gzip.decompress(copy.read_bytes()) == content
    np.testing.assert_array_equal(nib.load(copy).get_fdata(), nib.load(file).get_fdata())


@pytest.mark.parametrize("part", ["training", "."])
def test_a_download_without_a_test_set(part: str, src: Path, folders: Path) -> None:
    """The folder of the patients may be given itself, and is taken alone."""
    if part == ".":
        shutil.rmtree(src / "testing")
    make_acdc(src / part, dataset_id=28)
    raw = folders / "raw" / "Dataset028_ACDC"
    assert len(list((raw / "labelsTr").iterdir())) == 14
    assert not list((raw / "imagesTs").iterdir())


def test_what_a_run_that_was_killed_left_is_replaced(src: Path, folders: Path) -> None:
    left = folders / "raw" / f".unfinished-{NAME}" / "imagesTr" / "old_0000.nii.gz"
    left.parent.mkdir(parents=True)
    left.touch()
    make_acdc(src)
    assert not left.parent.parent.exists()
    assert not (folders / "raw" / NAME / "imagesTr" / left.name).exists()


@pytest.mark.parametrize("name", ["patient102_frame09.nii.gz", "dataset.json", "splits_final.json"])
def test_nothing_is_left_where_a_disk_gets_full(
    name: str, src: Path, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file it cannot take, and the next run is not refused."""
    before, replace = snapshot(folders), Path.replace

    def fail(source: Path, target: Path) -> Path:
        if target.name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        with pytest.raises(InputError, match=f"{name}: expected a file that can be written, got No space left on dev"):
            make_acdc(src)
    assert snapshot(folders) == before
    make_acdc(src)
