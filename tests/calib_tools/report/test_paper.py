"""What a paper takes from a report."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from calib_components.metrics import interval
from calib_tools.commands import report_folders
from calib_tools.report.readers import read_evaluations
from tests.calib_tools.report.made_up import write_evaluation

DOCUMENT = r"\documentclass{article}\usepackage{booktabs}\begin{document}%s\end{document}"


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("paper")
    folders = [write_evaluation(root / "a_1", gap=0.05), write_evaluation(root / "b&2", gap=0.1)]
    report_folders(*folders, out=root / "out", paper=True)
    return root / "out"


def test_the_table_has_the_means_and_intervals_of_the_page(paper: Path) -> None:
    table = (paper / "means.tex").read_text()
    results = read_evaluations([paper.parent / "a_1", paper.parent / "b&2"])
    lines = [line for line in table.splitlines() if " & " in line]
    cells = [line.removesuffix(r" \\").split(" & ") for line in lines]
    assert [row[0] for row in cells] == ["", r"a\_1", r"b\&2"]
    column = next(n for n, head in enumerate(cells[0]) if "NLL" in head and "all" in head)
    for row, name in zip(cells[1:], results.names, strict=True):
        found = interval(results.values(name, "nll_all"), results.patients)
        numbers = [float(each) for each in re.findall(r"\d\.\d+", row[column])]
        assert numbers == pytest.approx(found[:3], abs=6e-4)
    assert [r"\textbf" in row[column] for row in cells[1:]] == [True, False]  # lower is better
    if shutil.which("pdflatex"):
        (paper / "document.tex").write_text(DOCUMENT % table)
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "document.tex"]
        subprocess.run(command, cwd=paper, check=True, capture_output=True)


def test_diagrams_and_methods(paper: Path) -> None:
    for name in ("a_1", "b&2"):
        assert (paper / f"reliability_{name}.pdf").read_bytes().startswith(b"%PDF")
        assert "predicted foreground" in (paper / f"reliability_{name}.svg").read_text()
    methods = (paper / "methods.txt").read_text()
    assert "HD95 is the 95th percentile" in methods
    assert "in mm;" in methods
    assert "sign-flip permutation tests" in methods
    assert "9,999 resamples of patients" in methods
    assert "{" not in methods


def test_label_maps_have_no_diagram(tmp_path: Path) -> None:
    report_folders(
        write_evaluation(tmp_path / "net", with_probabilities=False),
        out=tmp_path / "out",
        paper=True,
    )
    assert not [*(tmp_path / "out").glob("reliability*")]
    methods = (tmp_path / "out" / "methods.txt").read_text()
    assert "ECE" not in methods
    assert "permutation" not in methods
    assert r"\textbf" not in (tmp_path / "out" / "means.tex").read_text()
