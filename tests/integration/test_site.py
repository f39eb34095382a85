"""The documentation site builds without warnings, and no page has a dead link."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("bundles/*/docs/README.md")),
]


@pytest.mark.slow
def test_site_builds_without_warnings(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for page in ROOT.joinpath("docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix("")
        html = (tmp_path / ("index.html" if name.name == "index" else f"{name}/index.html")).read_text()
        assert not re.search(r":(?:func|class|meth|mod):", html), (
            f"{page}: Sphinx markup, which the site does not render"
        )
        assert not re.search(r'<(?:link|script)[^>]*(?:href|src)="(?:https?:)?//', html), (
            f"{page}: fetches from elsewhere"
        )
    assert "library_name" not in (tmp_path / "bundles" / "acdc" / "index.html").read_text()  # the head of a model card
    assert "NACLLoss" in (tmp_path / "api" / "losses" / "index.html").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_dead_links(page: Path) -> None:
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, and of those that it includes on the site."""
    text = page.read_text()
    for included in re.findall(r'^--8<-- "([^:"]+)', text, re.MULTILINE):
        text += (ROOT / included).read_text()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_citation_has_the_required_fields() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors", "year"} <= paper.keys()
    assert [author["family-names"] for author in paper["authors"]][:1] == ["Murugesan"]


def test_workflow_runs_what_ci_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert job["steps"][-1] == {"run": "bash .ci/run"}
