"""Files of cases are listed, and known by their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from calib_components.errors import InputError
from calib_workflows.data.files import (
    LABEL_SUFFIXES,
    files_below,
    find_cases,
    patients_of,
    split_name,
)


def test_names_have_a_case_a_suffix_and_an_ending() -> None:
    names = [f"a_{suffix}.NII.gz" for suffix in ("gt", "Seg", "label", "b")]
    assert [split_name(name, LABEL_SUFFIXES).case for name in names] == ["a", "a", "a", "a_b"]
    assert split_name("x_ce_T1.nii", ["_t1", "_ce_t1"]) == ("x", "_ce_T1", ".nii")
    assert split_name("_gt.txt", LABEL_SUFFIXES) == ("_gt.txt", "", "")


def test_files_of_a_case_lie_in_one_folder_and_differ_in_their_suffix() -> None:
    files = [Path(name) for name in ("p/a_t1.nii", "p/a.nii.gz", "q/a.nii", "p/notes.txt")]
    by_suffix = {"_t1": files[0], "": files[1]}
    assert find_cases(files, ["_T1"]) == {Path("p/a"): by_suffix, Path("q/a"): {"": files[2]}}
    with pytest.raises(InputError, match=r"a\.nii: a\.nii\.gz is there as well"):
        find_cases([Path("a.nii.gz"), Path("a.nii")])


def test_files_below(tmp_path: Path) -> None:
    for name in ("src/b/2.nii", "src/1.nii", "src/.hidden", "src/.git/x", "disk/3.nii"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "src" / "a").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(tmp_path / "src")
    (tmp_path / "disk" / "again").symlink_to(tmp_path / "disk")
    assert [path.name for path in files_below(tmp_path / "src")] == ["1.nii", "3.nii", "2.nii"]
    with pytest.raises(InputError, match="absent: cannot read"):
        list(files_below(tmp_path / "absent"))


def test_patients_by_their_names() -> None:
    names = ["a_patient001_frame01", "b_patient001_frame12", "patient002"]
    assert list(patients_of(names, r"patient\d+").values()) == [
        "patient001",
        "patient001",
        "patient002",
    ]
    assert patients_of(names, None) == {name: name for name in names}
    for pattern in (r"frame\d+", "("):
        with pytest.raises(InputError, match="--patient_pattern"):
            patients_of(names, pattern)
