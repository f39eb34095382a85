from __future__ import annotations

import re

import pytest
from matplotlib.figure import Figure

from calib_components.tools.report.page import Picture, Section, to_html, to_png


@pytest.mark.parametrize(("inches", "shown", "least"), [(9.6, 800, "600px"), (7.2, 600, None), (4.8, 400, None)])
def test_wide_pictures_scroll_instead_of_shrinking_below_600_pixels(
    inches: float, shown: int, least: str | None
) -> None:
    picture = Picture("name", "Title", to_png(Figure(figsize=(inches, 1), dpi=150)))
    page = to_html("Title", "", "", [Section("name", "Title", "", pictures=[picture])])
    (image,) = re.findall("<img [^>]*?src", page)
    assert f'width="{shown}"' in image
    assert re.findall('min-width: ([^;"]*)', image) == ([least] if least else [])
    (figure,) = re.findall("figure {(.*?)}", page)
    assert "max-width: 100%;" in figure
    assert "overflow-x: auto;" in figure


def test_a_long_name_does_not_widen_the_page() -> None:
    assert "body { overflow-wrap: break-word; }" in to_html("a_long_name", "", "", [])
