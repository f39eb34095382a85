"""The picture of the page on regions."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scripts.draw_regions import draw_regions
from tests.helpers import ROOT
from tests.integration.test_published_results import compare_bytes


@pytest.mark.slow
def test_picture_is_that_of_the_script(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "made").mkdir()
    shutil.copy(ROOT / "docs/regions.png", tmp_path / "kept")
    draw_regions(tmp_path / "made/regions.png")
    compare_bytes(tmp_path / "made", tmp_path / "kept")
