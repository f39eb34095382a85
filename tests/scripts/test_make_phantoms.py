"""The phantom hearts: their layout, the same files for the same seed and scanner, and no other data overwritten."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from calib_components.errors import InputError
from calib_components.tools.prepare.acdc import find_cases
from calib_components.tools.prepare.case import load_case
from calib_components.tools.prepare.facts import facts_of_dataset
from scripts.benchmarks.phantoms import GROUPS, make_phantoms


def test_layout_is_that_of_acdc_and_the_seed_decides(tmp_path: Path) -> None:
    for name, options in (("a", {}), ("same", {}), ("seed", {"seed": 4}), ("scanner", {"scanner": "b"})):
        make_phantoms(tmp_path / name, **{"patients": 5, "seed": 3, **options})
    cases = find_cases(tmp_path / "a")
    assert [len(cases), {case.group for case in cases}] == [10, {*GROUPS}]
    for case in cases:
        data, _ = load_case(case, facts_of_dataset("acdc", tmp_path))
        assert data["label"].unique().tolist() == [0, 1, 2, 3]
        assert data["image"].pixdim.tolist() == [1.5, 1.5, 10.0]
        same = nib.load(tmp_path / "same" / case.images[0].relative_to(tmp_path / "a"))
        np.testing.assert_array_equal(data["image"][0], same.get_fdata())
    first = [min((tmp_path / name / "training").glob("*/*_frame01.nii.gz")) for name in ("a", "seed", "scanner")]
    assert len({nib.load(file).shape for file in first}) == 3
    assert [file.name[:10] for file in first] == ["patient001", "patient001", "patient101"]


def test_other_data_stay_as_they_are(tmp_path: Path) -> None:
    scan = tmp_path / "training" / "patient003" / "patient003_frame01.nii.gz"
    scan.parent.mkdir(parents=True)
    scan.write_text("a real heart")
    with pytest.raises(InputError, match="not empty"):
        make_phantoms(tmp_path, patients=4)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [scan]
    make_phantoms(tmp_path / "own", patients=1)
    with pytest.raises(InputError, match="not empty"):
        make_phantoms(tmp_path / "own", patients=1, seed=1)
