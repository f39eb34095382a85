"""A whole data set: what a second run does, what may not be mixed, and what is refused before anything is written."""

from __future__ import annotations

import fcntl
import functools
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
from calib_components.handlers.fingerprint import fingerprint_of_cases
from calib_components.tools.prepare import COMMANDS
from calib_components.tools.prepare.acdc import find_cases
from calib_components.tools.prepare.case import Case
from calib_components.tools.prepare.facts import facts_of_dataset
from calib_components.tools.prepare.prepare import prepare_cases
from tests.helpers import make_acdc, save

Prepare = Callable[..., None]


class TestAgain:
    def test_second_run_changes_nothing(self, out: Path, prepare: Prepare) -> None:
        prepare()
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != ".lock"}
        prepare()
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != ".lock"} == before

    def test_only_what_is_missing_is_prepared(self, out: Path, prepare: Prepare) -> None:
        prepare()
        kept = (out / "patient001_frame01" / "image.nii").stat().st_mtime_ns
        shutil.rmtree(out / "patient002_frame09")
        for state in ("unfinished", "replaced"):  # as killed runs leave them
            (out / f".{state}-patient002_frame09").mkdir()
        prepare()
        assert (out / "patient001_frame01" / "image.nii").stat().st_mtime_ns == kept
        assert (out / "patient002_frame09" / "label.nii").is_file()
        assert not [path for path in out.glob(".*") if path.name != ".lock"]

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda case: (case / "label.nii").unlink(),
            lambda case: (case / "image.nii").write_bytes((case / "image.nii").read_bytes()[:-1]),
            lambda case: (case / "label.nii").write_bytes((case / "label.nii").read_bytes() + b"0"),
            lambda case: (case / "image.nii").write_bytes(b""),
            lambda case: (case / "source.json").unlink(),
            lambda case: (case / "source.json").write_text("[]"),
            lambda case: (case / "source.json").write_text("{"),
            lambda case: (case / "source.json").write_text("{}"),
        ],
        ids=["no label", "cut", "longer", "empty", "no source", "list as source", "broken source", "empty source"],
    )
    def test_what_is_not_whole_is_made_anew(
        self, spoil: Callable[[Path], object], out: Path, prepare: Prepare, capsys: pytest.CaptureFixture[str]
    ) -> None:
        prepare()
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        spoil(out / "patient001_frame09")
        capsys.readouterr()
        prepare()
        assert f"{out}: 3 case(s) kept, 1 made, of these 1 anew\n" in capsys.readouterr().out
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before

    @pytest.mark.parametrize("name", ["patient001_frame09.nii.gz", "patient001_frame09_gt.nii.gz"])
    def test_what_has_another_source_is_made_anew(
        self, name: str, src: Path, out: Path, prepare: Prepare, capsys: pytest.CaptureFixture[str]
    ) -> None:
        prepare()
        first = fingerprint_of_cases(out / "datalist.json", out)
        file = src / "training" / "patient001" / name
        image = nib.load(file)
        save(file, np.asanyarray(image.dataobj)[::-1], image.affine)
        capsys.readouterr()
        prepare()
        assert f"{out}: 3 case(s) kept, 1 made, of these 1 anew\n" in capsys.readouterr().out
        prepare(out=out.with_name("fresh"))
        for file in out.rglob("*.nii"):
            assert file.read_bytes() == (out.with_name("fresh") / file.relative_to(out)).read_bytes()
        other = fingerprint_of_cases(out / "datalist.json", out)
        assert other not in (None, first)
        os.utime(src / "training" / "patient002" / "patient002_frame01.nii.gz")
        capsys.readouterr()
        prepare()
        assert f"{out}: 3 case(s) kept, 1 made, of these 1 anew\n" in capsys.readouterr().out
        assert fingerprint_of_cases(out / "datalist.json", out) == other  # they hold the same

    def test_headers_that_counted_do_not_count_the_next_time(
        self, out: Path, prepare: Prepare, capsys: pytest.CaptureFixture[str]
    ) -> None:
        prepare()
        prepare(ignore_headers=True)
        assert f"{out}: 0 case(s) kept, 4 made, of these 4 anew\n" in capsys.readouterr().out

    def test_bad_case_does_not_take_the_place_of_a_good_one(self, src: Path, out: Path, prepare: Prepare) -> None:
        prepare()
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        (src / "training" / "patient001" / "patient001_frame01.nii.gz").write_bytes(b"")
        with pytest.raises(
            InputError, match=r"/patient001_frame01.nii.gz: expected a readable NIfTI file, got Empty file"
        ):
            prepare()
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before

    def test_cases_that_the_source_lost_are_named(
        self, src: Path, out: Path, prepare: Prepare, capsys: pytest.CaptureFixture[str]
    ) -> None:
        prepare()
        shutil.rmtree(src / "training" / "patient002")
        prepare(fractions=(0.7, 0.1, 0.2))
        said = capsys.readouterr().out
        assert "2 prepared case(s), such as patient002_frame01, not in the data set any more, and not listed" in said
        assert "patient002" not in (out / "datalist.json").read_text()

    def test_other_settings_do_not_mix(self, out: Path, tmp_path: Path, prepare: Prepare) -> None:
        prepare()
        message = r"facts\.yaml: expected image_size \[32, 32\], got \[16, 32\], .*; choose another folder"
        with pytest.raises(InputError, match=message):
            prepare(image_size=(32, 32))
        with pytest.raises(InputError, match=r"facts\.yaml: expected source .*other, got .*src"):
            prepare(make_acdc(tmp_path / "other"))

    def test_two_runs_at_once_are_refused(self, out: Path, prepare: Prepare) -> None:
        out.mkdir()
        with open(out / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(InputError, match="out: expected no other run that writes to it, got one"):
                prepare()


class TestNotes:
    def test_classes_and_what_is_odd(
        self, src: Path, out: Path, prepare: Prepare, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """One label is stored with another axis first, one is empty, and none has class 2."""
        for file in src.rglob("*_gt.nii.gz"):
            label = np.asanyarray(nib.load(file).dataobj)
            save(file, np.where(label == 2, 0, label) * ("patient002_frame09" not in file.name))
        file = src / "training" / "patient001" / "patient001_frame01_gt.nii.gz"
        nib.load(file).as_reoriented(np.array([[1, -1], [0, 1], [2, 1]])).to_filename(file)
        prepare(out=out)
        said = capsys.readouterr().out.splitlines()
        assert said[0] == "classes: 0 background, 1 right ventricle, 2 myocardium, 3 left ventricle"
        assert said[2:5] == [
            f"1 file(s), such as {file.name}, turned onto the voxels of the image, as the headers state",
            "1 case(s), such as patient002_frame09, without any structure in the label",
            "in no label of any case: myocardium",
        ]
        prepare(out=out)  # what was found is remembered
        assert capsys.readouterr().out.splitlines()[2:5] == said[2:5]
        label = np.asanyarray(nib.load(out / "patient001_frame01" / "label.nii").dataobj)
        other = np.asanyarray(nib.load(out / "patient001_frame09" / "label.nii").dataobj)
        np.testing.assert_array_equal(label, other)

    def test_no_structure_for_validation(
        self, src: Path, out: Path, prepare: Prepare, capsys: pytest.CaptureFixture[str]
    ) -> None:
        note = "No structure in any label for validation, which so chooses no epoch. See --fractions and --seed."
        prepare(out=out.with_name("whole"), fractions=(0.5, 0.5, 0.0))
        assert note not in capsys.readouterr().out
        (validated, *_) = json.loads((out.with_name("whole") / "datalist.json").read_text())["validation"]
        for file in src.rglob(f"{validated['patient']}_*_gt.nii.gz"):
            save(file, np.zeros_like(np.asanyarray(nib.load(file).dataobj)))
        prepare(out=out, fractions=(0.5, 0.5, 0.0))
        assert note in capsys.readouterr().out

    def test_slices_along_different_axes(
        self, src: Path, out: Path, prepare: Prepare, capsys: pytest.CaptureFixture[str]
    ) -> None:
        prepare(out=out.with_name("plain"))
        assert "slices along" not in capsys.readouterr().out
        for name in ("patient002_frame09.nii.gz", "patient002_frame09_gt.nii.gz"):
            file = src / "training" / "patient002" / name
            nib.load(file).as_reoriented(np.array([[1, 1], [2, 1], [0, 1]])).to_filename(file)
        prepare(out=out)
        note = (
            "1 case(s), such as patient002_frame09, with slices along axis 0 of the file, most others along 2; if they "
            "show another plane, --slice_axis sets one axis for all\n"
        )
        assert note in capsys.readouterr().out
        for file in out.rglob("*.nii"):
            assert nib.load(file).shape == (16, 32, 4)
        prepare(out=out)  # what was found is remembered
        assert note in capsys.readouterr().out
        prepare(out=out.with_name("axis"), slice_axis=2)
        assert "slices along" not in capsys.readouterr().out


class TestWorkers:
    def test_their_number_changes_nothing(self, out: Path, tmp_path: Path, prepare: Prepare) -> None:
        prepare()
        prepare(out=tmp_path / "other", workers=2)
        files = [path for path in out.rglob("*") if path.suffix == ".nii"]
        assert len(files) == 8
        for file in files:
            assert file.read_bytes() == (tmp_path / "other" / file.relative_to(out)).read_bytes()
        listed = [json.loads((folder / "datalist.json").read_text()) for folder in (out, tmp_path / "other")]
        assert listed[0]["training"] == listed[1]["training"]

    def test_killed_worker_is_an_error_of_one_line(self, src: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # A reference to a function of the standard library is found in the worker, which cannot import this file.
        monkeypatch.setattr("calib_components.tools.parallel._start_worker", functools.partial(os._exit, 1))
        facts = facts_of_dataset("acdc", src, (16, 32))
        with pytest.raises(InputError, match="workers: expected processes that finish, got one that died, "):
            prepare_cases(find_cases(src), facts, out, fractions=(0, 0, 1), seed=0, workers=2)
        assert not (out / "datalist.json").exists()


class TestRefused:
    def test_all_cases_bad(self, src: Path, out: Path, prepare: Prepare) -> None:
        for file in src.rglob("*_gt.nii.gz"):
            file.unlink()
        with pytest.raises(InputError, match="out: expected at least one good case, got none"):
            prepare(skip_bad=True)
        assert {path.name for path in out.iterdir()} == {".lock", "facts.yaml"}

    @pytest.mark.parametrize("dataset", ["acdc", "flare", "brats"])
    def test_sources_without_cases(self, dataset: str, tmp_path: Path, out: Path) -> None:
        with pytest.raises(InputError, match=rf"{tmp_path.name}: expected .*(nii\.gz|Info\.cfg).*, got no cases"):
            COMMANDS[dataset](tmp_path, out)
        with pytest.raises(InputError, match="absent: expected a folder, got no such folder"):
            COMMANDS[dataset](tmp_path / "absent", out)
        assert not out.exists()

    @pytest.mark.parametrize("fractions", [(0.7, 0.1, 0.1), (1, 0), (1.2, -0.2, 0), 1, (float("nan"), 0, 1)])
    def test_fractions_that_do_not_sum_to_one(self, out: Path, prepare: Prepare, fractions: Any) -> None:
        with pytest.raises(InputError, match="fractions: expected three numbers of at least 0 that sum to 1, got"):
            prepare(fractions=fractions)
        assert not out.exists()

    @pytest.mark.parametrize("image_size", [128, (128,), (0, 128), (120, 128), (-16, 16), (16.0, 16)])
    def test_image_size_that_is_none(self, out: Path, prepare: Prepare, image_size: Any) -> None:
        with pytest.raises(InputError, match=r"image_size: expected two whole numbers, multiples of 16, .* got"):
            prepare(image_size=image_size)
        assert not out.exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"workers": 0}, "workers: expected a whole number of at least 1, got 0"),
            ({"seed": -1}, "seed: expected a whole number of at least 0, got -1"),
            ({"folds": 1}, "folds: expected 2 to 2, the number of patients, got 1"),
            ({"folds": 3}, "folds: expected 2 to 2, the number of patients, got 3"),
            ({"slice_axis": 3}, "slice_axis: expected 0, 1 or 2, got 3"),
        ],
        ids=str,
    )
    def test_numbers_without_sense(self, options: dict[str, int], message: str, out: Path, prepare: Prepare) -> None:
        with pytest.raises(InputError, match=message):
            prepare(**options)
        assert not out.exists()

    @pytest.mark.parametrize("where", ["src", "src/training/out", ".", "link", "link/out"])
    def test_folder_of_the_data_set(self, where: str, src: Path, tmp_path: Path, prepare: Prepare) -> None:
        (tmp_path / "link").symlink_to(src)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(InputError, match="expected a folder apart from the data set's, got one that holds or is"):
            prepare(out=tmp_path / where)
        assert sorted(tmp_path.rglob("*")) == before

    def test_two_cases_of_one_name(self, out: Path) -> None:
        cases = [Case("a", "a", label=Path("one")), Case("a", "a", label=Path("two"))]
        with pytest.raises(InputError, match="two: expected one case a, got a second besides one"):
            prepare_cases(cases, facts_of_dataset("acdc", Path("src")), out, fractions=(0, 0, 1), seed=0)
        assert not out.exists()


def test_label_stored_with_other_axes_is_turned_and_named(
    prepare: Prepare, src: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(fractions=(0, 0, 1))
    assert "turned" not in capsys.readouterr().out
    file = src / "training" / "patient001" / "patient001_frame09_gt.nii.gz"
    nib.save(nib.load(file).as_reoriented(np.array([[1, 1], [0, -1], [2, 1]])), file)
    prepare(out=tmp_path / "again", fractions=(0, 0, 1))
    assert "1 file(s), such as patient001_frame09_gt.nii.gz, turned onto the voxels" in capsys.readouterr().out
    for case in ("patient001_frame01", "patient001_frame09"):
        assert (tmp_path / "again" / case / "label.nii").read_bytes() == (out / case / "label.nii").read_bytes()


def test_pixel_size_is_that_of_the_training_cases(src: Path, out: Path, prepare: Prepare) -> None:
    for file in (src / "training" / "patient002").glob("*.nii.gz"):  # all pixels twice as large
        save(file, np.asarray(nib.load(file).dataobj), np.diag([3.0, 2.5, 10.0, 1.0]))
    prepare(fractions=(0.5, 0, 0.5))
    (item, _) = json.loads((out / "datalist.json").read_text())["training"]
    factor = 2 if item["patient"] == "patient002" else 1
    facts = yaml.safe_load((out / "facts.yaml").read_text())
    assert facts["pixel_size"] == [factor * 0.625, factor * 1.6875]  # 16 x 1.25 mm over 32, 18 x 1.5 mm over 16 pixels
