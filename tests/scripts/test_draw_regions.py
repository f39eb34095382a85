"""The picture of the page on regions."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.draw_regions import draw_regions
from tests.integration.test_published_results import compare_picture


@pytest.mark.slow
def test_picture_is_that_of_the_script(tmp_path: Path) -> None:
    compare_picture("regions.png", draw_regions, tmp_path)
