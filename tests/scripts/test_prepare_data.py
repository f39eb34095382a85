"""The command line as a user runs it: a data set of one's own, a refusal, and a run that is killed and continued."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from calib_components.tools import cli
from calib_components.tools.prepare import prepare_data
from tests.helpers import ROOT, blocks, make_acdc, run_script, save

SCRIPT = "scripts/prepare_data.py"


def test_own_data(tmp_path: Path) -> None:
    src, out = tmp_path / "1e3", tmp_path / "2024_11_25"
    save(src / "images" / "a.nii", np.arange(18 * 16 * 4).reshape(18, 16, 4).astype(np.int16))
    save(src / "labels" / "a.nii", blocks((18, 16, 4), [1, 2, 3]))
    labels = "left kidney, GTV+, 2nd"
    done = run_script(SCRIPT, "generic", src, out, "--labels", labels, "--image-size", "16,32", "--fractions", "0,0,1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "patients for training 0 (0 cases), validation 0 (0 cases), testing 1 (1 cases)" in done.stdout
    facts = yaml.safe_load((out / "facts.yaml").read_text())
    assert facts["class_names"] == ["background", "left kidney", "GTV+", "2nd"]
    assert facts["image_size"] == [16, 32]


def test_bad_case(tmp_path: Path) -> None:
    src, out = make_acdc(tmp_path / "src"), tmp_path / "out"
    bad = src / "training" / "patient001" / "patient001_frame09.nii.gz"
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    failed = run_script(SCRIPT, "acdc", src, out, "--image_size", "16,32", "--workers", 2)
    assert failed.returncode == 2
    assert failed.stderr.startswith(f"prepare_data: {bad}: ")
    assert failed.stderr.count("\n") == 1
    assert not (out / "datalist.json").exists()


@pytest.mark.parametrize("labels", ["left kidney,GTV+", '"left kidney","GTV+"', "['left kidney','GTV+']"])
def test_names_of_labels_as_shells_pass_them(labels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "src" / "images" / "a.nii", np.arange(18 * 16 * 4).reshape(18, 16, 4).astype(np.int16))
    save(tmp_path / "src" / "labels" / "a.nii", blocks((18, 16, 4), [1, 2]))
    handler = signal.getsignal(signal.SIGTERM)
    arguments = ["generic", tmp_path / "src", tmp_path / "out", "--labels", labels, "--image_size=16,32"]
    monkeypatch.setattr(sys, "argv", [SCRIPT, *map(str, arguments)])
    cli.run("prepare_data", prepare_data)
    signal.signal(signal.SIGTERM, handler)
    facts = yaml.safe_load((tmp_path / "out" / "facts.yaml").read_text())
    assert facts["class_names"] == ["background", "left kidney", "GTV+"]


def test_killed_run_is_continued(tmp_path: Path) -> None:
    """The run is killed while it prepares; the next one makes the rest, as an undisturbed run does."""
    src, out = make_acdc(tmp_path / "src", patients=8, shape=(96, 96, 12)), tmp_path / "out"
    command = [sys.executable, SCRIPT, "acdc", src, out, "--image_size", "192,192", "--workers", "2"]
    process = subprocess.Popen([*map(str, command)], cwd=ROOT)
    while len(list(out.glob("patient*"))) < 2:
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    kept = {file: file.read_bytes() for file in out.glob("patient*/*")}
    assert 2 * 3 <= len(kept) < 16 * 3
    assert not (out / "datalist.json").exists()
    prepare_data("acdc", src, out, image_size=(192, 192))
    prepare_data("acdc", src, tmp_path / "whole", image_size=(192, 192))
    for file in [*(tmp_path / "whole").glob("patient*/*"), tmp_path / "whole" / "facts.yaml"]:
        assert (out / file.relative_to(tmp_path / "whole")).read_bytes() == file.read_bytes()
    assert all(file.read_bytes() == content for file, content in kept.items())
    assert [path.name for path in out.glob(".*")] == [".lock"]
