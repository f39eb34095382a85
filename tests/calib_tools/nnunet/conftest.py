"""The folders of nnU-Net, which environment variables name."""

from __future__ import annotations

from pathlib import Path

import pytest

from calib_tools.nnunet import trainers


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty folders `raw`, `preprocessed` and `results`, and the trainers of this package."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_extTrainer", trainers.__path__[0])
    return tmp_path
