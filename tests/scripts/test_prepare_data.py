"""A preparation that is killed, and continued."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from calib_components.tools.prepare import prepare_data
from tests.helpers import ROOT, make_acdc


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
