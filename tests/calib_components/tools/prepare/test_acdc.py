from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from calib_components.errors import InputError
from calib_components.tools.prepare.acdc import find_cases


def test_source_may_be_the_folder_above_or_training_itself(src: Path) -> None:
    cases = find_cases(src)
    assert sorted(cases, key=str) == sorted(find_cases(src / "training"), key=str)
    first = min(cases, key=lambda case: case.name)
    assert (first.name, first.patient, first.group) == ("patient001_frame01", "patient001", "NOR")
    assert first.label.name == "patient001_frame01_gt.nii.gz"


def test_challenge_test_set_is_left_out_unless_it_is_the_source(src: Path) -> None:
    shutil.copytree(src / "training" / "patient001", src / "testing" / "patient101")
    assert {case.patient for case in find_cases(src)} == {"patient001", "patient002"}
    assert {case.patient for case in find_cases(src / "testing")} == {"patient101"}


def test_folder_above_training_and_testing_has_no_cases(
    src: Path, tmp_path: Path, prepare: Callable[..., None]
) -> None:
    """The challenge's test patients must not become part of the split."""
    (tmp_path / "download").mkdir()
    src.rename(tmp_path / "download" / "database")
    with pytest.raises(InputError, match=r"download: expected training/patientNNN/Info\.cfg .*, got no cases"):
        prepare(tmp_path / "download")


def test_information_in_other_encodings(src: Path) -> None:
    file = src / "training" / "patient001" / "Info.cfg"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes() + "Nurse: M\u00fcller\n".encode("latin-1"))
    assert [case.problem for case in find_cases(src)] == 4 * [""]
