"""The command line as a user runs it: options, errors, and a run that is killed and continued."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import yaml

from tests.helpers import ROOT, blocks, make_acdc, run_script, save

SCRIPT = "scripts/prepare_data.py"


def test_bad_case_and_misspelt_option(tmp_path: Path) -> None:
    src, out = make_acdc(tmp_path / "src"), tmp_path / "out"
    bad = src / "training" / "patient001" / "patient001_frame09.nii.gz"
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    arguments = (SCRIPT, "acdc", src, out, "--image-size", "16,20", "--fractions", "0,0,1", "--workers", 1)
    failed = run_script(*arguments)
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"prepare_data: {bad}: expected a readable NIfTI file, got ")
    assert failed.stderr.count("\n") == 1
    assert not (out / "datalist.json").exists()

    misspelt = run_script(*arguments, "--skip-bat")
    assert misspelt.returncode == 2
    assert misspelt.stderr.startswith("ERROR: Could not consume arg: --skip-bat\n")
    assert str(bad) not in misspelt.stderr  # nothing was begun

    skipped = run_script(*arguments, "--skip-bad")
    assert skipped.returncode == 0
    assert skipped.stderr.startswith(f"skipped: {bad}: expected a readable NIfTI file, got ")
    assert "testing 2 (3 cases)" in skipped.stdout


def test_names_of_labels_and_folders_are_taken_as_typed(tmp_path: Path) -> None:
    src, out = tmp_path / "1e3", tmp_path / "2024_11_25"
    save(src / "images" / "a.nii", np.arange(18 * 16 * 4).reshape(18, 16, 4).astype(np.int16))
    save(src / "labels" / "a.nii", blocks((18, 16, 4), [1, 2, 3]))
    options = ("--labels", "left kidney,GTV+,2nd", "--image_size", "[16,20]", "--fractions", "0,0,1")
    command = [sys.executable, ROOT / SCRIPT, "generic", "1e3", "2024_11_25", *options]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = yaml.safe_load((out / "facts.yaml").read_text())
    assert facts["class_names"] == ["background", "left kidney", "GTV+", "2nd"]
    assert facts["image_size"] == [16, 20]
    assert '"fractions": [\n  0,\n  0,\n  1\n ]' in (out / "datalist.json").read_text()


def test_killed_run_is_continued(tmp_path: Path) -> None:
    src, out = make_acdc(tmp_path / "src", patients=15, shape=(128, 128, 12)), tmp_path / "out"
    process = subprocess.Popen([sys.executable, SCRIPT, "acdc", src, out, "--workers", "2"], cwd=ROOT)
    while len(list(out.glob("patient*"))) < 3:
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = sorted(out.glob("patient*"))
    assert len(done) < 30
    assert not (out / "datalist.json").exists()
    for case in done:
        assert nib.load(case / "image.nii").get_fdata().shape == nib.load(case / "label.nii").get_fdata().shape
    before = {case: case.stat().st_mtime_ns for case in done}
    time.sleep(0.5)  # workers end with their parent

    assert run_script(SCRIPT, "acdc", src, out).returncode == 0
    assert len(list(out.glob("patient*"))) == 30
    assert not list(out.glob(".unfinished*"))
    assert {case: case.stat().st_mtime_ns for case in done} == before
