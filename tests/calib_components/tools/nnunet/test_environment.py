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
    with pytest.raises(
        InputError, match=r"^nnUNet_raw: expected the path of a folder, got .*gone, which is no folder$"
    ):
        folder_of("nnUNet_raw")
    for unset in (lambda: monkeypatch.setenv("nnUNet_raw", ""), lambda: monkeypatch.delenv("nnUNet_raw")):
        unset()
        with pytest.raises(InputError, match="^nnUNet_raw: expected nnU-Net's environment variable, the path of a fol"):
            folder_of("nnUNet_raw")


def test_without_nnunet_a_model_cannot_be_calibrated_and_all_else_works(folders: Path) -> None:
    """None in place of a module is what Python has for one that cannot be imported."""
    model = make_model(folders / "results", folders / "preprocessed")
    code = "import sys; sys.modules['nnunetv2'] = None; from calib_components.__main__ import main; main()"
    arguments = [sys.executable, "-c", code, "nnunet", "calibrate", model]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True)
    assert done.stderr == (
        "calib-components: nnunetv2: expected to be installed, got none; install the extra: pip install "
        '"calib-components[nnunet]"\n'
    )
    assert (done.returncode, done.stdout) == (1, "")
