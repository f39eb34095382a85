"""Hooks of mkdocs: links between guides, the pages of bundles, which the site includes in
`docs/bundles`, and the study's pages, which it has in `docs/study`; the options of commands; and
notebooks as pages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from calib_tools.__main__ import COMMANDS, ELSEWHERE
from calib_tools.cli import make_app

LINKS = {"../../docs/": "../", "../../study/pages/": "../study/", "../study/pages/": "study/"}
OPTIONS = "<!-- The site has the options of each command here. -->"
BUNDLES = re.compile(r"\]\((\.\./)?\.\./bundles/(?:common/(commands)|([a-z]+)_\w+/docs/README)\.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Return the files of the site, with a page in place of each notebook."""
    for file in [*files]:
        if file.src_uri.endswith(".ipynb"):
            files.remove(file)
            page = file.src_uri.replace(".ipynb", ".md")
            text = describe_notebook(json.loads(file.content_string))
            files.append(File.generated(config, page, content=text))
    return files


def describe_notebook(notebook: Mapping[str, Any]) -> str:
    """Return the cells of a notebook, and what they print and draw, as Markdown."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        is_code = cell["cell_type"] == "code"
        parts.append(f"```python\n{source}\n```" if is_code else source)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                image = "".join(data["image/png"]).replace("\n", "")
                parts.append(f"![Figure](data:image/png;base64,{image})")
            elif "text/html" in data:
                parts.append("".join(data["text/html"]))
            else:
                text = "".join(output.get("text", data.get("text/plain", "")))
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page whose links are those of the site instead of those of the repository."""
    markdown = BUNDLES.sub(
        lambda link: f"]({link[1] or ''}bundles/{link[2] or link[3]}.md", markdown
    )
    if OPTIONS in markdown:
        markdown = markdown.replace(OPTIONS, describe_commands())
    markdown = re.sub(r"(\]\([\w/]+)\.ipynb\)", r"\1.md)", markdown)
    for there, here in LINKS.items():
        markdown = markdown.replace(f"]({there}", f"]({here}")
    return markdown


def describe_commands() -> str:
    """Return the options of the package's commands, as `--help` has them."""
    commands = {name: command for name, command in COMMANDS.items() if name not in ELSEWHERE}
    text = make_app("calib-components", commands).generate_docs()
    return text[text.index("\n## ") :]  # below the list of commands
