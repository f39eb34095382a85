"""Hooks of mkdocs: links between guides, the pages of bundles, which the site includes in
`docs/bundles`, and the study's pages, which it has in `docs/study`; and the options of commands.
"""

from __future__ import annotations

import re
from typing import Any

from calib_components.__main__ import COMMANDS, ELSEWHERE
from calib_components.tools.cli import make_app

OPTIONS = "<!-- The site has the options of each command here. -->"
BUNDLES = re.compile(r"\]\((\.\./)?\.\./bundles/(?:common/(commands)|([a-z]+)_\w+/docs/README)\.md")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page whose links are those of the site instead of those of the repository."""
    markdown = BUNDLES.sub(
        lambda link: f"]({link[1] or ''}bundles/{link[2] or link[3]}.md", markdown
    )
    if OPTIONS in markdown:
        markdown = markdown.replace(OPTIONS, describe_commands())
    return markdown.replace("](../../docs/", "](../").replace("](../study/pages/", "](study/")


def describe_commands() -> str:
    """Return the options of the package's commands, as `--help` has them."""
    commands = {name: command for name, command in COMMANDS.items() if name not in ELSEWHERE}
    text = make_app("calib-components", commands).generate_docs()
    return text[text.index("\n## ") :]  # below the list of commands
