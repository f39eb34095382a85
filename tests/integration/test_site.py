"""The documentation site builds without warnings, and no page has a dead link."""

from __future__ import annotations

import re
from pathlib import Path

import mkdocs.commands.build
import mkdocs.config
import pytest

from tests.helpers import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "demo" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("bundles/*/docs/*.md")),
    *sorted(ROOT.glob("study/**/*.md")),
]
STUDY = ROOT / "study"  # absent from a copy of the product alone


@pytest.mark.skipif(not STUDY.is_dir(), reason="the site has the pages of the study")
def test_site_builds_without_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    monkeypatch.chdir(ROOT)
    config = mkdocs.config.load_config(
        str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path)
    )
    mkdocs.commands.build.build(config)
    pages = [*ROOT.joinpath("docs").rglob("*.md"), *ROOT.joinpath("docs", "study").glob("*.md")]
    for page in pages:
        name = page.relative_to(ROOT / "docs").with_suffix("")
        html = (
            tmp_path / ("index.html" if name.name == "index" else f"{name}/index.html")
        ).read_text()
        assert not re.search(r":(?:func|class|meth|mod):", html), (
            f"{page}: markup that the site does not render"
        )
        assert not re.search(r'<(?:link|script)[^>]*(?:href|src)="(?:https?:)?//', html), (
            f"{page}: fetches elsewhere"
        )
    assert "NACLLoss" in (tmp_path / "api" / "losses" / "index.html").read_text()
    assert "--patient_pattern" in (tmp_path / "commands" / "index.html").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_dead_links(page: Path) -> None:
    links = dead_links(page)
    assert [link for link in links if STUDY.is_dir() or "study/" not in link] == []


def dead_links(page: Path) -> list[str]:
    """Return the links of a page, as the repository shows it, that lead nowhere."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not link.startswith(("http://", "https://")) and not (
            target.exists() and (not anchor or anchor in anchors(target)) and is_text(target)
        ):
            dead.append(link)
    return dead


def is_text(target: Path) -> bool:
    """Whether the repository shows more of a page than what the site includes there."""
    return target.suffix != ".md" or not target.read_text().startswith("--8<--")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
