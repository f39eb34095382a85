"""Numbers as text, and the files of a report."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from calib_tools.report.page import Answer, Picture, Section, write_report
from calib_tools.report.tables import Cell, heading, number
from calib_workflows.folders import OutputFolder
from tests.calib_tools.report.made_up import PNG


def test_text_of_numbers() -> None:
    assert [number(v, "ece_all") for v in (0.0123, 0.0004, 0.000004, 0)] == [
        "0.012",
        "0.0004",
        "0.00000",
        "0.000",
    ]
    assert (number(-0.0001, "dsc", signed=True), number(2.346, "hd95"), number(np.nan, "dsc")) == (
        "-0.0001",
        "2.35",
        "n/a",
    )
    assert (heading("ece_predicted"), heading("dsc_RV", ["RV"]), heading("ece", arrow=False)) == (
        "ECE predicted ↓",
        "DSC RV ↑",
        "ECE foreground",
    )


HOSTILE = "a|b <script>x</script> [link](http://x)"


def page_of(folder: Path) -> str:
    table = pd.DataFrame({"x": [Cell("1", ["note"], True)]}, pd.Index([HOSTILE], name="label"))
    section = Section("all_cases", HOSTILE, HOSTILE, table, [{"x": 1}])
    shown = [
        section,
        Section("figures", "Figures", "", pictures=[Picture("a picture", "Title", PNG)]),
    ]
    answer = Answer([HOSTILE], "Do.", "this")
    write_report("Title", answer, ["Notice."], shown, OutputFolder(folder))
    return (folder / "index.html").read_text()


def test_page_holds_tables_and_figures_and_no_markup_of_names(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert "<script>x" not in page
    assert "<b>1</b><small>note</small>" in page
    assert ">Do.<code>this</code>" in page
    assert "max-height" not in page  # print has all lines
    glossary = (Path(__file__).parents[3] / "docs/glossary.md").read_text()
    terms = re.findall("<dt>(.+?)</dt><dd>(.+?)</dd>", page)
    assert len(terms) == page.count("<dt>")
    assert [term for term in terms if f"| {' | '.join(term)} |" not in glossary] == []
    assert 'width="284"' in page  # 512 pixels
    assert not re.search(r"(src|href)=\"http", page)
    assert (tmp_path / "a picture.png").read_bytes() == PNG


def test_report_replaces_an_earlier_one_but_no_other_files(tmp_path: Path) -> None:
    def names() -> set[str]:
        return {file.name for file in tmp_path.glob("[!.]*")}

    page_of(tmp_path)
    (tmp_path / "mine.csv").touch()
    assert names() == {"a picture.png", "index.html", "mine.csv", "all_cases.csv"}
    table = pd.DataFrame({"y": [Cell("2")]}, ["a line"])
    sections = [Section("other", "", "", table, [{"y": 2}])]
    write_report("Title", Answer([]), [], sections, OutputFolder(tmp_path))
    assert names() == {"index.html", "other.csv", "mine.csv"}
