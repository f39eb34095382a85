"""Hooks of mkdocs: links between guides, the pages of bundles, which the site includes in
`docs/bundles`, and the study's pages, which it has in `docs/study`.
"""

from __future__ import annotations

import re
from typing import Any

BUNDLES = re.compile(r"\]\((\.\./)?\.\./bundles/(?:common/(commands)|([a-z]+)_\w+/docs/README)\.md")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page whose links are those of the site instead of those of the repository."""
    markdown = BUNDLES.sub(
        lambda link: f"]({link[1] or ''}bundles/{link[2] or link[3]}.md", markdown
    )
    return markdown.replace("](../../docs/", "](../").replace("](../study/pages/", "](study/")
