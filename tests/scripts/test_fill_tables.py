"""Tables and texts of README and pages have the numbers of the results."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from calib_components.errors import InputError
from calib_components.tools.report.quality import rank_scans
from scripts import fill_tables
from scripts.fill_tables import _gap_closed, corrected, difference, fill, numbers

MEANS = """method,temperature,test_set,label,measure,mean,low,high,published,if_true
ce_dice,without,,CE+DSC,dsc,0.8804,0.86,0.9,0.828,
ce_dice,without,,CE+DSC,ece,0.0551,0.04,0.07,0.137,0.0129
ce_dice,with,,CE+DSC + T,dsc,0.8804,0.86,0.9,,
ce_dice,with,,CE+DSC + T,ece,0.04,0.03,0.05,,0.041
nacl,without,,NACL,dsc,0.8751,0.85,0.89,0.854,
nacl,without,,NACL,ece,0.0449,0.03,0.06,0.048,0.2191
"""
LGE = """method,temperature,test_set,label,measure,mean,low,high,published,if_true
ce_dice,without,lge,CE+DSC,dsc,0.6,0.5,0.7,,
nacl,without,lge,NACL,dsc,0.61,0.52,0.69,,
"""
BINS = """method,seed,fold,test_set,temperature,case,region,count_1,count_2,confidence_1,correct_1
nacl,0,0,,without,case0,predicted,10,30,33,33
nacl,0,0,,without,case0,all,90,90,180,180
"""
LOSSES = ("focal", "nacl", "cross_entropy")
SHIFTS = {"focal": 0.01, "nacl": -0.2, "cross_entropy": 0}


def make_cases() -> pd.DataFrame:
    """Three losses, three seeds, eight patients."""
    rng = np.random.default_rng(0)
    keys = [(name, seed, f"case{case}") for name in LOSSES for seed in range(3) for case in range(8)]
    table = pd.DataFrame(keys, columns=["method", "seed", "case"])
    nll = rng.normal(1 + table["method"].map(SHIFTS), 0.1)
    return table.assign(nll_all=nll, patient=table["case"], temperature="without", test_set="", fold=0)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "results/acdc/three_seeds"
    (folder / "report").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (folder / "report/means.csv").write_text(MEANS)
    (folder / "report/means_on_lge.csv").write_text(LGE)
    (folder / "temperatures.csv").write_text("method,seed,fold,temperature\nnacl,0,0,0.671\nnacl,1,0,0.685\n")
    pd.read_csv(StringIO(BINS)).to_csv(folder / "bins.csv.gz", index=False)
    make_cases().to_csv(folder / "cases.csv.gz", index=False)
    monkeypatch.setattr(fill_tables, "ROOT", tmp_path)
    monkeypatch.setattr(fill_tables, "LOSSES", LOSSES)
    clear()
    yield tmp_path
    clear()


def clear() -> None:
    fill_tables.results.cache_clear()
    fill_tables.difference.cache_clear()


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
            """|  | ECE foreground ↓ | DSC ↑ |
| --- | --- | --- |
| CE+DSC | 0.055 (0.013) [0.040, 0.070] | 0.880 [0.860, 0.900] |
| CE+DSC + T | 0.040 (0.041) [0.030, 0.050] | 0.880 [0.860, 0.900] |
""",
        ),
        ("acdc, lge | dsc | nacl", "|  | ACDC DSC ↑ | LGE DSC ↑ |\n| --- | --- | --- |\n| NACL | 0.875 | 0.610 |\n"),
        (
            "acdc | dsc, T, confidence | nacl | published",
            """|  | DSC (paper) ↑ | T | confidence / accuracy, % |
| --- | --- | --- | --- |
| NACL | 0.875 (0.854) | 0.67 to 0.69 | 82 / 82 |
""",
        ),
    ],
)
def test_tables(what: str, rows: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = page_with(root, table_of(what))
    with pytest.raises(SystemExit):
        fill(check=True)
    assert capsys.readouterr().out == "docs/page.md: differs: run scripts/fill_tables.py\n"
    assert "\nold\n" in page.read_text()
    fill()
    assert page.read_text() == f"# Page\n\n{table_of(what, rows)}\n\nText.\n"
    fill(check=True)


def test_texts(root: Path) -> None:
    """Numbers of the paragraph before the comment, in their order; other paragraphs stay."""
    page = page_with(root, "- First: 0.12.\n- DSC 0.10, so 9 % right\n  at T = 0.3 to 1.00.\n  <!-- from: SOURCES -->")
    page.write_text(page.read_text().replace("SOURCES", "nacl lge dsc; = 90; = 1.50"))
    fill()
    assert page.read_text().startswith("# Page\n\n- First: 0.12.\n- DSC 0.610, so 90 % right\n  at T = 0.3 to 1.50.\n")
    fill(check=True)


def test_gap_closed_has_the_variance_of_the_jackknife() -> None:
    rng = np.random.default_rng(0)
    cases = pd.DataFrame({"dsc": rng.uniform(0.5, 1, 24), "patient": np.arange(24) % 8})
    cases["expected_dsc"] = cases["dsc"] + rng.normal(0, 0.1, 24)

    def measure(of: pd.DataFrame) -> float:
        return rank_scans(of["expected_dsc"], of["dsc"], ["a"] * len(of))[0].mean

    values = _gap_closed(cases[["expected_dsc", "dsc", "patient"]])
    assert values.mean() == pytest.approx(measure(cases))
    without = [measure(cases[cases["patient"] != patient]) for patient in range(8)]
    assert values.groupby(cases["patient"]).mean().var() / 8 == pytest.approx(7 * np.var(without))
    assert values.groupby(cases["patient"]).nunique().max() == 1


def test_differences(root: Path) -> None:
    values = make_cases().groupby("method")["nll_all"].mean()
    found = difference("nacl", "cross_entropy", "acdc", "nll_all")
    assert found.mean == pytest.approx(values["nacl"] - values["cross_entropy"])
    assert found.low < found.mean < found.high < 0
    assert numbers("nacl - cross_entropy acdc nll_all") == [f"{end:+.3f}" for end in found[:3]]
    assert numbers("size nacl - cross_entropy acdc nll_all") == [f"{-found.mean:.3f}"]


def test_p_values_are_corrected(root: Path) -> None:
    p_values = {name: difference(name, "cross_entropy", "acdc", "nll_all").p_value for name in ("focal", "nacl")}
    assert p_values["nacl"] < 0.05 < p_values["focal"]
    assert corrected("nacl", "cross_entropy", "acdc", "nll_all") == pytest.approx(2 * p_values["nacl"])
    assert corrected("focal", "cross_entropy", "acdc", "nll_all") == pytest.approx(p_values["focal"])
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
