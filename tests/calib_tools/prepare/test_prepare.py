"""A whole data set: what a second run does, what may not be mixed, and what is refused before
anything is written.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

from calib_components.errors import InputError
from calib_workflows.runs import fingerprint_of_cases
from tests.calib_tools.prepare.conftest import Prepare, read
from tests.helpers import make_acdc, save, snapshot


def listed(out: Path, split: str = "testing") -> list[str]:
    return [item["case"] for item in json.loads((out / "datalist.json").read_text())[split]]


class TestAgain:
    @pytest.mark.parametrize(
        "spoil",
        [
            lambda case: (case / "label.nii").unlink(),
            lambda case: (case / "image.nii").write_bytes((case / "image.nii").read_bytes()[:-1]),
            lambda case: save(case / "label.nii", np.zeros((16, 32, 3), np.uint8)),
        ],
        ids=["no label", "cut", "label of another depth"],
    )
    def test_what_is_not_whole_is_made_anew(
        self, spoil: Callable[[Path], object], out: Path, prepare: Prepare
    ) -> None:
        assert f"{out}: 4 made\n" in prepare()
        before, kept = snapshot(out), (out / "patient002_frame01" / "image.nii").stat().st_mtime_ns
        spoil(out / "patient001_frame09")
        shutil.rmtree(out / "patient002_frame09")
        (out / ".unfinished-patient002_frame09").mkdir()  # as a killed run leaves it
        assert f"{out}: 2 case(s) kept, 2 made\n" in prepare()
        assert snapshot(out) == before
        assert [path.name for path in out.glob(".*")] == [".run"]
        assert (out / "patient002_frame01" / "image.nii").stat().st_mtime_ns == kept

    def test_what_has_another_source_is_made_anew(
        self, src: Path, out: Path, prepare: Prepare
    ) -> None:
        prepare()
        before, first = snapshot(out), fingerprint_of_cases(out / "datalist.json", out)
        os.utime(src / "training" / "patient002" / "patient002_frame01.nii.gz")
        assert f"{out}: 3 case(s) kept, 1 made\n" in prepare()
        assert fingerprint_of_cases(out / "datalist.json", out) == first  # they hold the same
        file = src / "training" / "patient001" / "patient001_frame09_gt.nii.gz"
        save(file, read(file)[::-1])
        assert f"{out}: 3 case(s) kept, 1 made\n" in prepare()
        changed = {name for name, content in snapshot(out).items() if content != before[name]}
        assert {name for name in changed if "nii" in name} == {"patient001_frame09/label.nii"}
        assert fingerprint_of_cases(out / "datalist.json", out) not in (None, first)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"image_size": (32, 32)},
                r"facts\.yaml: .* prepared with image_size \[16, 32\], not \[32, 32\]",
            ),
            ({"src": Path("other")}, r"facts\.yaml: .* prepared with source"),
        ],
        ids=str,
    )
    def test_two_preparations_do_not_mix(
        self,
        options: dict[str, Any],
        message: str,
        out: Path,
        prepare: Prepare,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(out.parent)
        make_acdc(Path("other"))
        prepare()
        before = snapshot(out)
        with pytest.raises(InputError, match=message):
            prepare(**options)
        assert snapshot(out) == before


class TestOutput:
    @pytest.mark.parametrize("where", ["src", ".", "link/out"])
    def test_folder_of_the_data_set(
        self, where: str, src: Path, tmp_path: Path, prepare: Prepare
    ) -> None:
        (tmp_path / "link").symlink_to(src)
        before = snapshot(tmp_path)
        with pytest.raises(InputError, match="holds or lies in that of the data set"):
            prepare(out=tmp_path / where)
        assert snapshot(tmp_path) == before

    def test_folder_of_other_files(self, out: Path, prepare: Prepare) -> None:
        out.mkdir()
        (out / "thesis.txt").touch()
        with pytest.raises(InputError, match="Output folder is not empty"):
            prepare()
        assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_first_bad_case_by_name_ends_the_run_or_all_are_left_out(
    src: Path, out: Path, prepare: Prepare
) -> None:
    make_acdc(src, patients=3)
    bad = [src / "training" / f"patient00{i}" / f"patient00{i}_frame09_gt.nii.gz" for i in (1, 2)]
    for file in bad:
        file.unlink()
    bad.append(src / "training" / "patient003" / "Info.cfg")
    bad[-1].write_text("ED: 1")
    with pytest.raises(InputError, match=rf"^{bad[0]}"):
        prepare(workers=2)
    assert not (out / "datalist.json").exists()
    shown = prepare(skip_bad=True, fractions=(0, 0, 1))
    assert shown.count("skipped: ") == 3
    assert all(f"skipped: {file}" in shown for file in bad)
    assert listed(out) == ["patient001_frame01", "patient002_frame01"]


@pytest.mark.parametrize(
    "given",
    # Of two patients
    [{"fractions": (0.7, 0.1, 0.1)}, {"fractions": (1.2, -0.2, 0)}, {"workers": 0}, {"folds": 3}],
    ids=str,
)
def test_numbers_without_sense(given: dict[str, Any], out: Path, prepare: Prepare) -> None:
    with pytest.raises(InputError, match=f"{next(iter(given))} must be"):
        prepare(**given)
    assert not out.exists()


def test_number_of_workers_changes_nothing(out: Path, prepare: Prepare) -> None:
    prepare()
    prepare(out=out.parent / "other" / out.name, workers=3)  # a list has the name of its folder
    assert snapshot(out.parent / "other" / out.name) == snapshot(out)


def test_what_is_odd_is_noted(src: Path, out: Path, prepare: Prepare) -> None:
    """One label is stored with other axes, one is empty, none has class 2, and one case lies along
    axis 0.
    """
    for file in src.rglob("*_gt.nii.gz"):
        label = read(file)
        save(file, np.where(label == 2, 0, label) * ("patient002_frame09" not in file.name))
    file = src / "training" / "patient001" / "patient001_frame01_gt.nii.gz"
    nib.load(file).as_reoriented(np.array([[1, -1], [0, 1], [2, 1]])).to_filename(file)
    for other in (src / "training" / "patient002").glob("patient002_frame01*"):
        nib.load(other).as_reoriented(np.array([[1, 1], [2, 1], [0, 1]])).to_filename(other)
    for _ in ("made", "kept"):  # what was found is remembered
        shown = prepare()
        for note in (
            "1 case(s), such as patient002_frame01: slices not along axis 2 of the file",
            "1 case(s), such as patient002_frame09: no structure in the label",
            "in no label of any case: myocardium",
        ):
            assert f"\n{note}" in shown
    label, *others = (
        read(out / f"patient00{i}_frame0{j}" / "label.nii") for i, j in ((1, 1), (1, 9), (2, 1))
    )
    for other in others:
        np.testing.assert_array_equal(label, other)


def test_structures_outside_the_crop_are_not_in_no_label(
    src: Path, out: Path, prepare: Prepare
) -> None:
    label = np.zeros((18, 16, 4), np.uint8)
    label[:3, :, 0], label[8:10, 7:9] = 3, 2  # the network sees 144 of 224 rows
    for file in src.rglob("*_gt.nii.gz"):
        save(file, label)
    shown = prepare(image_size=(224, 224))
    assert "4 case(s), such as patient001_frame01: structures outside of what training" in shown
    assert "in no label of any case: right ventricle\n" in shown


def test_nan_is_refused(src: Path, prepare: Prepare) -> None:
    file = src / "training" / "patient001" / "patient001_frame01.nii.gz"
    image = read(file).astype(np.float32)
    image[:2] = np.nan
    save(file, image)
    with pytest.raises(InputError, match=rf"{file}: 128 values are NaN .*Store 0"):
        prepare()


def test_pixel_size_is_that_of_the_training_cases(src: Path, out: Path, prepare: Prepare) -> None:
    for file in (src / "training" / "patient002").glob("*.nii.gz"):  # all pixels twice as large
        save(file, read(file), np.diag([3.0, 2.5, 10.0, 1.0]))
    prepare(fractions=(0.5, 0, 0.5))
    factor = 2 if "patient002" in listed(out, "training")[0] else 1
    facts = yaml.safe_load((out / "facts.yaml").read_text())
    # 16 x 1.25 mm over 32, 18 x 1.5 mm over 16 pixels
    assert facts["pixel_size"] == [factor * 0.625, factor * 1.6875]
