"""Numbers as text, sections, and the page that the template makes of them."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from calib_tools.report.report import write_report
from calib_workflows.folders import OutputFolder
from calib_workflows.pages.numbers import Cell, heading, number, to_cell
from calib_workflows.pages.page import Answer, Picture, Section, render_page
from calib_workflows.pages.quality import Review, choose, describe_scan, quality_page
from tests.calib_components.quality.made_up import NO_REFERENCE, estimate
from tests.calib_tools.report.made_up import PNG
from tests.helpers import ROOT, files

HOSTILE = "a|b <script>x</script> \"'& [link](http://x)"
TABLE = pd.DataFrame(
    [
        {"label": "a", "measure": "dsc", "mean": 0.8, "low": 0.7, "high": 0.9},
        {"label": "a", "measure": "ece_all", "mean": 0.0123},
        {"label": "b", "measure": "ece_all", "mean": np.nan, "note": "1 case"},
    ]
)


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


def test_a_difference_is_bold_if_it_is_significant() -> None:
    record: dict[str, Any] = {"measure": "dsc", "mean": -0.1, "low": -0.2, "high": -0.05}
    for p, note, bold in ((0.0001, "p < 0.001", True), (0.05, "p = 0.050", False)):
        cell = to_cell({**record, "p_value": p, "signed": True})
        assert cell == Cell("-0.1000", ["[-0.2000, -0.0500]", note], bold)
    assert not to_cell({**record, "high": 0.01, "p_value": 0.01}).bold
    assert not to_cell({**record, "p_value": 0.01, "p_value_holm": 0.06}).bold


def test_page_text_and_csv_of_a_section_follow_from_its_table() -> None:
    section = Section("cases", "Cases", table=TABLE)
    assert section.grid() == (
        ["", "DSC ↑", "ECE all ↓"],
        [
            [Cell("a"), Cell("0.800", ["[0.700, 0.900]"]), Cell("0.012", [])],
            [Cell("b"), Cell(""), Cell("n/a", ["1 case"])],
        ],
    )
    assert [re.split("  +", line.strip()) for line in section.as_text().splitlines()] == [
        ["DSC ↑", "ECE all ↓"],
        ["a", "0.800 [0.700, 0.900]", "0.012"],
        ["b", "n/a 1 case"],
    ]
    assert section.as_csv().splitlines() == [
        "label,measure,mean,low,high",
        "a,dsc,0.8,0.7,0.9",
        "a,ece_all,0.0123,,",
        "b,ece_all,,,",
    ]
    turned = Section("cases", "Cases", table=TABLE, lines=("measure",), column="label")
    heads, rows = turned.grid()
    assert heads == ["measure", "a", "b"]
    assert [row[0].text for row in rows] == ["DSC ↑", "ECE all ↓"]


def test_page_holds_its_sections_and_no_markup_of_names() -> None:
    record = {"label": HOSTILE, "measure": HOSTILE, "text": HOSTILE, "note": HOSTILE}
    hostile = pd.DataFrame([record])
    pictures = [Picture(HOSTILE, HOSTILE, PNG)]
    sections = [
        Section("shown", "Shown", HOSTILE, pd.concat([TABLE, hostile]), folded=False, first=1),
        Section("all_cases", HOSTILE, HOSTILE, hostile, pictures=pictures),
        Section(HOSTILE, HOSTILE, HOSTILE, hostile, folded=False, kind="card"),
    ]
    links = {HOSTILE: HOSTILE}
    page = render_page(HOSTILE, Answer([HOSTILE], HOSTILE), sections, [HOSTILE], links)
    assert "<script>x" not in page
    (name,) = re.findall('<article id="(.*?)"', page)
    assert unescape(name) == HOSTILE
    places = [page.index(text) for text in ('"answer"', "What next", "<h2>Shown", "<summary>All 3")]
    assert places == sorted(places)
    assert page.count("<small>[0.700, 0.900]</small>") == 2  # of the first lines, and of all
    assert 'width="284"' in page  # 512 pixels
    assert page.count("<button><img") == page.count("<img ") == 1  # it opens larger
    assert "max-height" not in page  # print has all lines
    assert not re.search(r"(src|href)=\"http", page)


def test_page_without_sections_has_its_answer() -> None:
    page = render_page("Title", Answer(["No case."]), [])
    assert "<p>No case.</p>" in page
    assert "<table>" not in page
    assert "What next" not in page


def test_terms_are_those_of_the_glossary() -> None:
    page = render_page("Title", Answer([]), [])
    glossary = (ROOT / "docs/glossary.md").read_text()
    terms = re.findall("<dt>(.+?)</dt><dd>(.+?)</dd>", page)
    assert len(terms) == page.count("<dt>") > 0
    assert [term for term in terms if f"| {' | '.join(term)} |" not in glossary] == []


def test_page_of_quality_links_to_the_scans_to_check() -> None:
    records = [
        describe_scan(f"scan {number}", {"a": estimate(dsc), "b": estimate(dsc)}, NO_REFERENCE)
        for number, dsc in enumerate((0.9, 0.5, 0.8, 0.6, 0.7))
    ]
    review = Review.from_options("40%")
    chosen = choose(records, NO_REFERENCE, review)
    page = quality_page(chosen, Answer([]), NO_REFERENCE, review)
    assert re.findall('<a href="#(.*?)">(.*?)</a>', page) == [("scan 1",) * 2, ("scan 3",) * 2]
    articles = dict(re.findall('<article id="(.*?)" class="(.*?)">', page))
    assert [*articles] == ["scan 1", "scan 3", "scan 4", "scan 2", "scan 0"]
    assert [*articles.values()] == ["card check"] * 2 + ["card"] * 3


def test_report_replaces_an_earlier_one_but_no_other_files(tmp_path: Path) -> None:
    def write(section: Section) -> None:
        write_report("Title", Answer([]), [], [section], OutputFolder(tmp_path))

    pictures = [Picture("a picture", "Title", PNG)]
    write(Section("all_cases", "", table=TABLE, pictures=pictures))
    assert (tmp_path / "a picture.png").read_bytes() == PNG
    (tmp_path / "mine.csv").touch()
    assert files(tmp_path) == {"a picture.png", "index.html", "mine.csv", "all_cases.csv"}
    write(Section("other", "", table=TABLE))
    assert files(tmp_path) == {"index.html", "other.csv", "mine.csv"}
