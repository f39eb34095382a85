"""Tables and texts of README and pages have the numbers of the results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from calib_components.errors import InputError
from calib_components.quality.ranking import rank_scans
from study.compare.statistics import mean_with_interval
from study.tables import fill_tables
from study.tables.fill_tables import _gap_closed, corrected, difference, fill, numbers

LABELS = {"ce_dice": "CE+DSC", "nacl": "NACL"}
BINS = """method,seed,fold,test_set,temperature,case,region,count_1,count_2,confidence_1,correct_1
nacl,0,0,,without,case0,predicted,10,30,33,33
nacl,0,0,,without,case0,all,90,90,180,180
"""
LOSSES = ("focal", "nacl", "cross_entropy")
SHIFTS = {"focal": 0.01, "nacl": -0.4, "cross_entropy": 0}


def make_cases() -> pd.DataFrame:
    """Four losses, one with its temperature and one on two test sets; three seeds, eight
    patients.
    """
    rows = [
        *((name, "without", "") for name in LOSSES),
        *(("ce_dice", end, "") for end in ("without", "with")),
    ]
    keys = [
        (*row, seed, f"case{case}")
        for row in [*rows, ("nacl", "without", "lge")]
        for seed in range(3)
        for case in range(8)
    ]
    table = pd.DataFrame(keys, columns=["method", "temperature", "test_set", "seed", "case"])
    rng = np.random.default_rng(0)
    values = {
        name: rng.uniform(0.1, 0.9, len(table))
        for name in ("dsc_RV", "dsc_LV", "ece", "ece_if_true")
    }
    nll = rng.normal(1 + table["method"].map(SHIFTS).fillna(0), 0.1)
    return table.assign(nll_all=nll, patient=table["case"], fold=0, **values)


def cell(
    method: str,
    measure: str,
    temperature: str = "without",
    test_set: str = "",
    interval: bool = False,
) -> str:
    """A cell of a table: the mean of a measure of the cases, the value if true, and the
    interval.
    """
    cases = (
        make_cases()
        .set_index(["method", "temperature", "test_set"])
        .loc[(method, temperature, test_set)]
    )
    dsc = cases.assign(dsc=(cases["dsc_RV"] + cases["dsc_LV"]) / 2)
    values = dsc.set_index(["seed", "case"])[measure].unstack()
    found = mean_with_interval(values, [*values])
    text = f"{found.mean:.3f}" + f" ({cases['ece_if_true'].mean():.3f})" * (measure == "ece")
    return text + f" [{found.low:.3f}, {found.high:.3f}]" * interval


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "study/results/acdc/three_seeds"
    folder.mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (folder / "comparison.json").write_text(json.dumps({"labels": LABELS}))
    (folder / "temperatures.csv").write_text(
        "method,seed,fold,temperature\nnacl,0,0,0.671\nnacl,1,0,0.685\n"
    )
    pd.read_csv(StringIO(BINS)).to_csv(folder / "bins.csv.gz", index=False)
    make_cases().to_csv(folder / "cases.csv.gz", index=False)
    monkeypatch.setattr(fill_tables, "ROOT", tmp_path)
    monkeypatch.setattr(fill_tables, "RESULTS", tmp_path / "study" / "results")
    monkeypatch.setattr(fill_tables, "LOSSES", LOSSES)
    clear()
    yield tmp_path
    clear()


def clear() -> None:
    for cached in (
        fill_tables.results,
        fill_tables.label_of,
        fill_tables.mean,
        fill_tables.difference,
    ):
        cached.cache_clear()


def page_with(root: Path, text: str) -> Path:
    page = root / "docs" / "page.md"
    page.write_text(f"# Page\n\n{text}\n\nText.\n")
    return page


def table_of(what: str, rows: str = "old\n") -> str:
    return f"<!-- table: {what} -->\n{rows}<!-- end of table -->"


@pytest.mark.parametrize(
    ("what", "rows"),
    [
        (
            "acdc | ece, dsc | ce_dice, ce_dice+T | interval",
            [
                "|  | ECE foreground ↓ | DSC ↑ |",
                "| --- | --- | --- |",
                *(
                    f"| {label} | {cell('ce_dice', 'ece', end, interval=True)} | "
                    f"{cell('ce_dice', 'dsc', end, interval=True)} |"
                    for label, end in (("CE+DSC", "without"), ("CE+DSC + T", "with"))
                ),
            ],
        ),
        (
            "acdc, lge | dsc | nacl",
            [
                "|  | ACDC DSC ↑ | LGE DSC ↑ |",
                "| --- | --- | --- |",
                f"| NACL | {cell('nacl', 'dsc')} | {cell('nacl', 'dsc', test_set='lge')} |",
            ],
        ),
        (
            "acdc | dsc, T, confidence | nacl | published",
            [
                "|  | DSC (paper) ↑ | T | confidence / accuracy, % |",
                "| --- | --- | --- | --- |",
                f"| NACL | {cell('nacl', 'dsc')} (0.854) | 0.67 to 0.69 | 82 / 82 |",
            ],
        ),
    ],
)
def test_tables(what: str, rows: list[str], root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = page_with(root, table_of(what))
    with pytest.raises(SystemExit):
        fill(check=True)
    assert capsys.readouterr().out == "".join(
        f"{file}: differs: run study/tables/fill_tables.py\n"
        for file in ("study/results/means.csv", "docs/page.md")
    )
    assert "\nold\n" in page.read_text()
    fill()
    assert page.read_text() == f"# Page\n\n{table_of(what, chr(10).join([*rows, '']))}\n\nText.\n"
    fill(check=True)


def test_texts(root: Path) -> None:
    """Numbers of the paragraph before the comment, in their order; other paragraphs stay."""
    page = page_with(
        root,
        "- First: 0.12.\n- DSC 0.10, so 9 % right\n  at T = 0.3 to 1.00.\n  <!-- from: SOURCES -->",
    )
    page.write_text(page.read_text().replace("SOURCES", "nacl lge dsc; = 90; = 1.50"))
    fill()
    dsc = cell("nacl", "dsc", test_set="lge")
    assert page.read_text().startswith(
        f"# Page\n\n- First: 0.12.\n- DSC {dsc}, so 90 % right\n  at T = 0.3 to 1.50.\n"
    )
    fill(check=True)


def test_means_of_all(root: Path) -> None:
    fill()
    table = pd.read_csv(root / "study/results/means.csv")
    ce = table.query("test_set == 'acdc' and method == 'ce_dice+T' and measure == 'ece'")
    (row,) = ce.itertuples()
    shown = cell("ce_dice", "ece", "with", interval=True)
    ece_if_true = re.search(r" \(.*\)", shown)[0]
    assert f"{row.mean:.3f}{ece_if_true} [{row.low:.3f}, {row.high:.3f}]" == shown
    assert row.seeds == 3
    assert len(table) == 6 * len({"dsc", "ece", "nll_all"} & {*table["measure"]})


def test_gap_closed_has_the_variance_of_the_jackknife() -> None:
    rng = np.random.default_rng(0)
    cases = pd.DataFrame({"dsc": rng.uniform(0.5, 1, 24), "patient": np.arange(24) % 8})
    cases["expected_dsc"] = cases["dsc"] + rng.normal(0, 0.1, 24)

    def measure(of: pd.DataFrame) -> float:
        return float(rank_scans(of["expected_dsc"], of["dsc"], ["a"] * len(of)).gap_closed[0])

    values = _gap_closed(cases[["expected_dsc", "dsc", "patient"]])
    assert values.mean() == pytest.approx(measure(cases))
    without = [measure(cases[cases["patient"] != patient]) for patient in range(8)]
    assert values.groupby(cases["patient"]).mean().var() / 8 == pytest.approx(7 * np.var(without))
    assert values.groupby(cases["patient"]).nunique().max() == 1


def test_differences(root: Path) -> None:
    values = make_cases().query("test_set == ''").groupby("method")["nll_all"].mean()
    found = difference("nacl", "cross_entropy", "acdc", "nll_all")
    assert found.mean == pytest.approx(values["nacl"] - values["cross_entropy"])
    assert found.low < found.mean < found.high < 0
    assert numbers("nacl - cross_entropy acdc nll_all") == [f"{end:+.3f}" for end in found[:3]]
    assert numbers("size nacl - cross_entropy acdc nll_all") == [f"{-found.mean:.3f}"]


def test_p_values_are_corrected(root: Path) -> None:
    p_values = {
        name: difference(name, "cross_entropy", "acdc", "nll_all").p_value
        for name in ("focal", "nacl")
    }
    assert p_values["nacl"] < 0.05 < p_values["focal"]
    assert corrected("nacl", "cross_entropy", "acdc", "nll_all") == pytest.approx(
        2 * p_values["nacl"]
    )
    assert corrected("focal", "cross_entropy", "acdc", "nll_all") == pytest.approx(
        p_values["focal"]
    )
    assert numbers("p nacl - cross_entropy acdc nll_all") == [f"{p_values['nacl']:.3f}"]
    assert numbers("holm nacl - cross_entropy acdc nll_all") == [f"{2 * p_values['nacl']:.3f}"]


@pytest.mark.parametrize(
    ("text", "keyword"),
    [
        (table_of("acdc | dice | nacl"), "dice"),
        (table_of("acdc | dsc | svls"), "svls"),
        (table_of("bssfp | dsc | nacl"), "bssfp"),
        ("0.10 <!-- from: svls acdc dsc -->", "svls"),
        ("0.10 <!-- from: nacl -->", "nacl"),
        ("0.10 and 0.20 <!-- from: nacl acdc dsc -->", "1 numbers"),
    ],
)
def test_what_the_results_lack_is_an_error(root: Path, text: str, keyword: str) -> None:
    page = page_with(root, text)
    with pytest.raises(InputError, match=keyword):
        fill()
    assert text in page.read_text()
