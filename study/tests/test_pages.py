"""The pages of the study have no dead links, in the repository; the site's are tested with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.integration.test_site import dead_links

PAGES = [
    *sorted((ROOT / "study").glob("*.md")),
    *sorted((ROOT / "study" / "pages").glob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_dead_links(page: Path) -> None:
    assert dead_links(page) == []
