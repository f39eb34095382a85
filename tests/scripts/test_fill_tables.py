"""Tables of README and pages have the numbers of the reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from calib_components.errors import InputError
from scripts import fill_tables
from scripts.fill_tables import fill

MEANS = """method,label,measure,mean,low,high,if_true
ce_dice,CE+DSC,dsc,0.8804,0.86,0.9,
ce_dice,CE+DSC,ece,0.0551,0.04,0.07,0.0129
ce_dice,CE+DSC + T,dsc,0.8804,0.86,0.9,
ce_dice,CE+DSC + T,ece,0.04,0.03,0.05,0.041
nacl,NACL,dsc,0.8751,,,
nacl,NACL,ece,0.0449,0.03,0.06,0.2191
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "means.csv").write_text(MEANS)
    monkeypatch.setattr(fill_tables, "ROOT", tmp_path)
    return tmp_path


def page_with(root: Path, what: str) -> Path:
    page = root / "docs" / "page.md"
    page.write_text(f"# Page\n\n<!-- table: {what} -->\nold\n<!-- end of table -->\n\nText.\n")
    return page


@pytest.mark.parametrize(
    ("what", "table"),
    [
        (
            "means.csv | ece, dsc | ce_dice | intervals",
            """|  | ECE foreground (if true) ↓ | DSC ↑ |
| --- | --- | --- |
| CE+DSC | 0.055 (0.013) [0.040, 0.070] | 0.880 [0.860, 0.900] |
| CE+DSC + T | 0.040 (0.041) [0.030, 0.050] | 0.880 [0.860, 0.900] |
""",
        ),
        (
            "means.csv | dsc",
            "|  | DSC ↑ |\n| --- | --- |\n| CE+DSC | 0.880 |\n| CE+DSC + T | 0.880 |\n| NACL | 0.875 |\n",
        ),
    ],
)
def test_tables_of_means(what: str, table: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = page_with(root, what)
    with pytest.raises(SystemExit):
        fill(check=True)
    assert capsys.readouterr().out == "docs/page.md: differs: run scripts/fill_tables.py\n"
    assert "\nold\n" in page.read_text()
    fill()
    assert page.read_text() == f"# Page\n\n<!-- table: {what} -->\n{table}<!-- end of table -->\n\nText.\n"
    fill(check=True)


@pytest.mark.parametrize(
    ("what", "keyword"),
    [
        ("none.csv | dsc", r"none\.csv"),
        ("means.csv | dice", "dice"),
        ("means.csv | dsc | svls", "svls"),
        ("means.csv", "FILE"),
    ],
)
def test_what_a_report_lacks_is_an_error(root: Path, what: str, keyword: str) -> None:
    page = page_with(root, what)
    with pytest.raises(InputError, match=keyword):
        fill()
    assert "\nold\n" in page.read_text()
