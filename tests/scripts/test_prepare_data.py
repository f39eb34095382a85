"""The command line as a user runs it: a data set of one's own, a refusal, and a run that is killed and continued."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from calib_components.tools import cli
from calib_components.tools.prepare import prepare_data
from tests.helpers import ROOT, blocks, make_acdc, save

Run = Callable[..., None]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in this process, as typed."""

    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["prepare_data", *map(str, arguments)])
        cli.run("prepare_data", prepare_data)

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return run


@pytest.mark.parametrize("labels", ["left kidney,GTV+", '"left kidney","GTV+"', "['left kidney','GTV+']"])
def test_names_of_labels_as_shells_pass_them(labels: str, tmp_path: Path, run: Run) -> None:
    src, out = tmp_path / "1e3", tmp_path / "2024_11_25"
    save(src / "images" / "a.nii", np.arange(18 * 16 * 4).reshape(18, 16, 4).astype(np.int16))
    save(src / "labels" / "a.nii", blocks((18, 16, 4), [1, 2]))
    run("generic", src, out, "--labels", labels, "--image-size", "16,32", "--fractions", "0,0,1")
    facts = yaml.safe_load((out / "facts.yaml").read_text())
    assert (facts["class_names"], facts["image_size"]) == (["background", "left kidney", "GTV+"], [16, 32])


def test_bad_case(tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    src, out = make_acdc(tmp_path / "src"), tmp_path / "out"
    bad = src / "training" / "patient001" / "patient001_frame09.nii.gz"
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    with pytest.raises(SystemExit) as caught:
        run("acdc", src, out, "--image_size=16,32", "--workers=2")
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"prepare_data: {bad}: ")
    assert not (out / "datalist.json").exists()


@pytest.mark.slow
def test_killed_run_is_continued(tmp_path: Path) -> None:
    """The run is killed while it prepares; the next one makes the rest, as an undisturbed run does."""
    src, out = make_acdc(tmp_path / "src", patients=8, shape=(96, 96, 12)), tmp_path / "out"
    command = [sys.executable, "scripts/prepare_data.py", "acdc", src, out, "--image_size", "192,192", "--workers", "2"]
    process = subprocess.Popen([*map(str, command)], cwd=ROOT)
    while len(list(out.glob("patient*"))) < 2:
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    kept = {file: file.read_bytes() for file in out.glob("patient*/*")}
    assert not (out / "datalist.json").exists()
    for folder in (out, tmp_path / "whole"):
        prepare_data("acdc", src, folder, image_size=(192, 192))
    for file in [*(tmp_path / "whole").glob("patient*/*"), tmp_path / "whole" / "facts.yaml"]:
        assert (out / file.relative_to(tmp_path / "whole")).read_bytes() == file.read_bytes()
    assert all(file.read_bytes() == content for file, content in kept.items())
    assert [path.name for path in out.glob(".*")] == [".lock"]
