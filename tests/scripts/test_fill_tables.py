"""Tables of README and pages have the numbers of the reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from calib_components.errors import InputError
from scripts import fill_tables
from scripts.fill_tables import fill

MEANS = """method,measure,mean,low,high,temperature,if_true
ce_dice,dsc,0.8804,0.86,0.9,without,
ce_dice,ece,0.0551,0.04,0.07,without,0.0129
ce_dice,dsc,0.8804,0.86,0.9,with,
ce_dice,ece,0.04,0.03,0.05,with,0.041
nacl,dsc,0.8751,nan,nan,without,
nacl,ece,0.0449,0.03,0.06,without,0.2191
"""
RANKS = "method,sum_rank_on_ACDC,sum_rank,sum_rank_low,sum_rank_high\nnacl,7.0,17.0,9.0,20.5\nl1_ace,5.5,9.0,4.0,17.0\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "means.csv").write_text(MEANS)
    (tmp_path / "ranks.csv").write_text(RANKS)
    monkeypatch.setattr(fill_tables, "ROOT", tmp_path)
    return tmp_path


def filled(root: Path, what: str) -> str:
    page = root / "docs" / "page.md"
    page.write_text(f"# Page\n\n<!-- table: {what} -->\nold\n<!-- end of table -->\n\nText.\n")
    fill()
    text = page.read_text()
    assert text.startswith(f"# Page\n\n<!-- table: {what} -->\n")
    assert text.endswith("<!-- end of table -->\n\nText.\n")
    return text.split("-->\n")[1].removesuffix("<!-- end of table ")


def test_means_of_chosen_methods_with_intervals(root: Path) -> None:
    assert filled(root, "means.csv | ece, dsc | ce_dice | intervals") == (
        "|  | ECE foreground (if true) ↓ | DSC ↑ |\n"
        "| --- | --- | --- |\n"
        "| CE+DSC | 0.055 (0.013) [0.040, 0.070] | 0.880 [0.860, 0.900] |\n"
        "| CE+DSC + T | 0.040 (0.041) [0.030, 0.050] | 0.880 [0.860, 0.900] |\n"
    )


def test_all_methods_without_intervals(root: Path) -> None:
    assert filled(root, "means.csv | dsc") == (
        "|  | DSC ↑ |\n| --- | --- |\n| CE+DSC | 0.880 |\n| CE+DSC + T | 0.880 |\n| NACL | 0.875 |\n"
    )


def test_one_line_per_method(root: Path) -> None:
    assert filled(root, "ranks.csv | sum_rank_on_ACDC, sum_rank | intervals") == (
        "|  | ACDC ↓ | sum-rank ↓ |\n| --- | --- | --- |\n| NACL | 7 | 17 [9, 20.5] |\n"
        "| CE+DSC+L1-ACE | 5.5 | 9 [4, 17] |\n"
    )


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("none.csv | dsc", r"none.csv: expected a table of a report, got No such file"),
        ("means.csv | dice", r"means.csv: expected dice in it, got none"),
        ("means.csv | dsc | svls", r"means.csv: expected svls in it, got none"),
        ("twice.csv | dsc", r"twice.csv: expected a table of a report, got several means of dsc for nacl"),
        ("means.csv", r"page.md: expected <!-- table: FILE \| MEASURES --> and .*, got <!-- table: means.csv -->"),
    ],
)
def test_what_a_report_lacks_is_an_error(root: Path, what: str, message: str) -> None:
    page = root / "docs" / "page.md"
    page.write_text(f"<!-- table: {what} -->\nold\n<!-- end of table -->\n")
    before = page.read_text()
    (root / "twice.csv").write_text(MEANS + MEANS.splitlines()[-2] + "\n")
    with pytest.raises(InputError, match=message):
        fill()
    assert page.read_text() == before


def test_table_without_an_end_is_an_error(root: Path) -> None:
    page = root / "docs" / "page.md"
    table = "<!-- table: means.csv | dsc -->\n"
    page.write_text(f"{table}\nText.\n\n{table}<!-- end of table -->\n")
    with pytest.raises(InputError, match=r"page.md: expected .* and <!-- end of table -->, got <!-- table: means"):
        fill()


def test_methods_of_ones_own_have_their_names(root: Path) -> None:
    (root / "own.csv").write_text(MEANS.replace("nacl", "ensemble"))
    assert "| ensemble | 0.875 |" in filled(root, "own.csv | dsc")


def test_check_names_what_differs_and_writes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(root, "means.csv | dsc")
    capsys.readouterr()
    fill(check=True)
    assert capsys.readouterr().out == ""
    page = root / "docs" / "page.md"
    page.write_text(page.read_text().replace("0.875", "0.876"))
    changed = page.read_text()
    with pytest.raises(SystemExit) as error:
        fill(check=True)
    assert error.value.code == 1
    assert capsys.readouterr().out == "docs/page.md: differs: run scripts/fill_tables.py\n"
    assert page.read_text() == changed


def test_pages_have_the_numbers_of_the_reports() -> None:
    fill(check=True)
