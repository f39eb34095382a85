"""What nnU-Net's commands are told by the environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from calib_components.errors import InputError
from calib_components.tools.nnunet.environment import folder_of
from tests.calib_components.tools.nnunet.made_up import make_model


def test_folders(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert folder_of("nnUNet_raw") == folders / "raw"
    monkeypatch.setenv("nnUNet_raw", str(folders / "gone"))
    with pytest.raises(InputError, match=r"^nnUNet_raw: expected the path of a folder, got .*gone, which"):
        folder_of("nnUNet_raw")
    for unset in (lambda: monkeypatch.setenv("nnUNet_raw", ""), lambda: monkeypatch.delenv("nnUNet_raw")):
        unset()
        with pytest.raises(InputError, match=r"^nnUNet_raw: expected nnU-Net's environment variable"):
            folder_of("nnUNet_raw")


WITHOUT = """
import sys

class Absent:
    def find_spec(name, path=None, target=None):
        if name == "nnunetv2":
            raise ModuleNotFoundError("No module named 'nnunetv2'", name=name)

sys.meta_path.insert(0, Absent)
from calib_components.__main__ import main
main()
"""


def test_without_nnunet_a_model_cannot_be_calibrated(folders: Path) -> None:
    """The commands are there without it, and say what to install."""
    model = make_model(folders / "results", folders / "preprocessed")
    arguments = [sys.executable, "-c", WITHOUT, "nnunet", "calibrate", model]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True)
    assert done.stderr == (
        "calib-components: nnunetv2: expected to be installed, got none; install the extra, in a clone: pip install -e "
        '".[nnunet]"\n'
    )
    assert (done.returncode, done.stdout) == (1, "")
