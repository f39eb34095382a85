"""The commands as someone has them who only installed the package: without the repository, from any folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, make_acdc

# Pretends that a module is not installed.
WITHOUT = "import sys; sys.modules[{!r}] = None; from calib_components.__main__ import main; main()"


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)


def test_help_lists_the_commands(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "calib_components")
    assert done.returncode == 0, done.stderr
    for name in ("prepare_data", "compare_losses", "report"):
        assert name in done.stdout
    for arguments in (("prepare_data", "acdc"), ("compare_losses",), ("report",)):
        done = run(tmp_path, "-m", "calib_components", *arguments, "--help")
        assert done.returncode == 0, done.stderr
        assert "--" in done.stdout + done.stderr


def test_prepares_as_the_script_does(tmp_path: Path) -> None:
    src = make_acdc(tmp_path / "src")
    options = ("--image_size", "16,20", "--fractions", "0,0,1", "--workers", 1)
    done = run(tmp_path, "-m", "calib_components", "prepare_data", "acdc", "src", "a/out", *options)
    assert done.returncode == 0, done.stderr
    done = run(tmp_path, ROOT / "scripts" / "prepare_data.py", "acdc", src, "b/out", *options)
    assert done.returncode == 0, done.stderr
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) == 11
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_error_is_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "calib_components", "prepare_data", "flare", "absent", "out")
    assert (done.returncode, done.stderr) == (1, "calib-components: absent: expected a folder, got no such folder\n")


@pytest.mark.parametrize("module", ["fire", "nibabel", "tqdm", "yaml"])
def test_missing_extra_is_an_error_of_one_line(module: str, tmp_path: Path) -> None:
    done = run(tmp_path, "-c", WITHOUT.format(module))
    assert done.returncode == 1
    assert done.stderr == (
        f"calib-components: expected the module {module}, got none; "
        'install the extra: pip install "calib-components[bundles]"\n'
    )
