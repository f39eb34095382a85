"""Generated configs of the bundles are written from their sources."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scripts import sync_bundles
from tests.helpers import ACDC, ROOT


def test_files_that_differ_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sync_bundles, "ROOT", tmp_path)
    for bundle in sync_bundles.BUNDLES.values():
        for name in ("configs", "docs"):
            shutil.copytree(ROOT / "bundles" / bundle / name, tmp_path / bundle / name)
    train = tmp_path / ACDC.name / "configs" / "train.yaml"
    train.unlink()
    sync_bundles.sync()
    assert capsys.readouterr().out == f"{train}: written\n"
    assert train.read_bytes() == (ACDC / "configs" / "train.yaml").read_bytes()
