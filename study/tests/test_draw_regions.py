"""The picture of the regions, of the guide to metrics."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.tables.draw_regions import draw_regions


@pytest.mark.slow
def test_picture_is_drawn(tmp_path: Path) -> None:
    draw_regions(out=tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 20_000
