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

import pytest

from calib_components.errors import InputError
from calib_components.tools.preparation import COMMANDS
from calib_components.tools.preparation.acdc import find_cases
from calib_components.tools.preparation.case import Case
from calib_components.tools.preparation.facts import Facts
from calib_components.tools.preparation.prepare import prepare_cases
from tests.helpers import make_acdc

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
        (out / ".unfinished-patient002_frame09").mkdir()  # as a killed run leaves it
        prepare()
        assert (out / "patient001_frame01" / "image.nii").stat().st_mtime_ns == kept
        assert (out / "patient002_frame09" / "label.nii").is_file()
        assert not list(out.glob(".unfinished*"))

    def test_other_settings_do_not_mix(self, out: Path, tmp_path: Path, prepare: Prepare) -> None:
        prepare()
        message = r"facts\.yaml: expected image_size \[32, 32\], got \[16, 20\], .*; choose another folder"
        with pytest.raises(InputError, match=message):
            prepare(image_size=(32, 32))
        with pytest.raises(InputError, match=r"facts\.yaml: expected source .*other, got .*src"):
            prepare(make_acdc(tmp_path / "other"))

    def test_two_runs_at_once_are_refused(self, out: Path, prepare: Prepare) -> None:
        out.mkdir()
        with open(out / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(InputError, match="out: expected no other run that prepares it, got one"):
                prepare()


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
        monkeypatch.setattr("calib_components.tools.preparation.prepare._start_worker", functools.partial(os._exit, 1))
        facts = Facts.of_dataset("acdc").for_source(src, (16, 20))
        with pytest.raises(ChildProcessError, match=r"a worker process died, .*; try fewer --workers"):
            prepare_cases(find_cases(src), facts, out, (0, 0, 1), seed=0, workers=2, skip_bad=False)
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

    @pytest.mark.parametrize("image_size", [128, (128,), (0, 128)])
    def test_image_size_that_is_none(self, out: Path, prepare: Prepare, image_size: Any) -> None:
        with pytest.raises(InputError, match="image_size: expected two positive numbers, got"):
            prepare(image_size=image_size)
        assert not out.exists()

    def test_two_cases_of_one_name(self, out: Path) -> None:
        cases = [Case("a", "a", label=Path("one")), Case("a", "a", label=Path("two"))]
        with pytest.raises(InputError, match="two: expected one case a, got a second besides one"):
            prepare_cases(cases, Facts.of_dataset("acdc"), out, (0, 0, 1), seed=0, workers=1, skip_bad=False)
        assert not out.exists()
