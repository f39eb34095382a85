"""The phantom hearts: their layout, their anatomy, and the same files for the same seed."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from calib_components.errors import InputError
from calib_components.tools.prepare.acdc import find_cases
from calib_components.tools.prepare.case import load_case
from calib_components.tools.prepare.facts import facts_of_dataset
from scripts.benchmarks.phantoms import (
    GROUPS,
    make_phantoms,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantoms")
    make_phantoms(out, patients=10, seed=3)
    return out


def volumes(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Image and label at end-diastole and end-systole."""
    files = sorted(folder.glob("*_gt.nii.gz"))
    return [
        (np.asanyarray(nib.load(str(file).replace("_gt", "")).dataobj), np.asanyarray(nib.load(file).dataobj))
        for file in files
    ]


def test_layout_is_that_of_acdc(root: Path) -> None:
    cases = find_cases(root)
    assert len(cases) == 20
    assert {case.group for case in cases} == set(GROUPS)
    for case in cases:
        data, _ = load_case(case, facts_of_dataset("acdc", root))
        assert all(96 <= size <= 128 for size in data["image"].shape[1:3])
        assert 6 <= data["image"].shape[3] <= 10
        assert data["image"].pixdim.tolist() == [1.5, 1.5, 10.0]


def test_seed(root: Path, tmp_path: Path) -> None:
    make_phantoms(tmp_path / "same", patients=2, seed=3)
    make_phantoms(tmp_path / "other", patients=2, seed=4)
    for file in (tmp_path / "same").rglob("*.*"):
        name = file.relative_to(tmp_path / "same")
        if file.suffix == ".gz":
            image = nib.load(file).get_fdata()
            np.testing.assert_array_equal(image, nib.load(root / name).get_fdata())
        else:
            assert file.read_text() == (root / name).read_text()
    with pytest.raises(InputError, match="not empty"):
        make_phantoms(tmp_path / "same", patients=2, seed=4)
    first = Path("training/patient001/patient001_frame01.nii.gz")
    assert nib.load(tmp_path / "other" / first).shape != nib.load(root / first).shape


def test_other_data_stay_as_they_are(tmp_path: Path) -> None:
    scan = tmp_path / "training" / "patient003" / "patient003_frame01.nii.gz"
    scan.parent.mkdir(parents=True)
    scan.write_text("a real heart")
    with pytest.raises(InputError, match="not empty"):
        make_phantoms(tmp_path, patients=4)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [scan]
