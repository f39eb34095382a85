"""The command line as a user runs it: options, errors, and a run that is killed and continued."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from calib_components.tools.prepare import COMMANDS
from tests.bad_input.harness import run_as_typed, snapshot
from tests.helpers import ROOT, blocks, make_acdc, run_script, save

SCRIPT = "scripts/prepare_data.py"


def test_bad_case_and_misspelt_option(tmp_path: Path) -> None:
    src, out = make_acdc(tmp_path / "src"), tmp_path / "out"
    bad = src / "training" / "patient001" / "patient001_frame09.nii.gz"
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    arguments = (SCRIPT, "acdc", src, out, "--image-size", "16,32", "--fractions", "0,0,1", "--workers", 1)
    failed = run_script(*arguments)
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"prepare_data: {bad}: expected a complete NIfTI file, got ")
    assert failed.stderr.count("\n") == 1
    assert not (out / "datalist.json").exists()

    misspelt = run_as_typed("prepare_data", COMMANDS, [*arguments[1:], "--skip-bat"])
    assert misspelt.code == 1
    assert misspelt.err.startswith("prepare_data: --skip-bat: expected an option, got no such option; did you mean")
    assert str(bad) not in misspelt.err  # nothing was begun

    skipped = run_as_typed("prepare_data", COMMANDS, [*arguments[1:], "--skip-bad"])
    assert skipped.code == 0
    assert skipped.err.startswith(f"skipped: {bad}: expected a complete NIfTI file, got ")
    assert "testing 2 (3 cases)" in skipped.out


@pytest.mark.parametrize(
    "labels",
    [
        "left kidney,GTV+,2nd",
        "left kidney, GTV+, 2nd",
        '"left kidney,GTV+,2nd"',
        '"left kidney","GTV+","2nd"',
        "['left kidney','GTV+','2nd']",
        '["left kidney", "GTV+", "2nd"]',
    ],
)
def test_names_of_labels_and_folders_are_taken_as_typed(
    labels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "1e3" / "images" / "a.nii", np.arange(18 * 16 * 4).reshape(18, 16, 4).astype(np.int16))
    save(tmp_path / "1e3" / "labels" / "a.nii", blocks((18, 16, 4), [1, 2, 3]))
    monkeypatch.chdir(tmp_path)
    options = ("--labels", labels, "--image_size", "[16,32]", "--fractions", "0,0,1")
    done = run_as_typed("prepare_data", COMMANDS, ["generic", "1e3", "2024_11_25", *options])
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("classes: 0 background, 1 left kidney, 2 GTV+, 3 2nd\n")
    facts = yaml.safe_load((tmp_path / "2024_11_25" / "facts.yaml").read_text())
    assert facts["class_names"] == ["background", "left kidney", "GTV+", "2nd"]
    assert facts["image_size"] == [16, 32]
    assert '"fractions": [\n  0,\n  0,\n  1\n ]' in (tmp_path / "2024_11_25" / "datalist.json").read_text()


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """Four runs are killed, each continues where the one before ended; the last gives what an undisturbed run gives."""
    src, out, whole = make_acdc(tmp_path / "src", patients=15, shape=(96, 96, 12)), tmp_path / "out", tmp_path / "whole"
    options = ("--image_size", "192,192", "--folds", 3)
    assert run_script(SCRIPT, "acdc", src, whole, *options).returncode == 0
    moments = random.Random(0)
    for number in range(4):
        if number >= 2:  # some cases have to be made anew
            for case in sorted(out.glob("patient*"))[:2]:
                (case / "label.nii").write_bytes(b"")
        before = len(list(out.glob("*")))
        command = [sys.executable, SCRIPT, "acdc", src, out, *map(str, options), "--workers", str(1 + number % 2)]
        process = subprocess.Popen(command, cwd=ROOT)
        appear = moments.randrange(4)  # so many files and folders, and then a moment
        while len(list(out.glob("*"))) < before + appear or not (out / ".lock").exists():
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        time.sleep(0.3)  # workers end with their parent
        for case in out.glob("patient*"):  # what is there is whole, but for what was spoilt above
            if (case / "label.nii").stat().st_size:
                assert (case / "image.nii").read_bytes() == (whole / case.name / "image.nii").read_bytes()
                assert (case / "label.nii").read_bytes() == (whole / case.name / "label.nii").read_bytes()

    last = run_script(SCRIPT, "acdc", src, out, *options)
    assert (last.returncode, last.stderr) == (0, "")
    assert snapshot(out).keys() == snapshot(whole).keys()
    for name in ("datalist.json", "datalist_fold0.json", "datalist_fold1.json", "datalist_fold2.json"):
        assert (out / name).read_text() == (whole / name).read_text().replace('"name": "whole"', '"name": "out"')
    for file in [*whole.glob("patient*/*"), whole / "facts.yaml"]:
        assert (out / file.relative_to(whole)).read_bytes() == file.read_bytes()
