"""Hooks of mkdocs: links between guides and the study's pages, which are in `docs/study` on the
site.
"""

from __future__ import annotations

from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page whose links are those of the site instead of those of the repository."""
    return markdown.replace("](../../docs/", "](../").replace("](../study/pages/", "](study/")
