"""Reports of comparisons with made-up numbers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from calib_components.errors import InputError
from calib_tools.report import comparison as module
from study.compare.data import Row
from study.compare.ranks import costs_of
from study.compare.readers import read_cells
from study.compare.report import (
    NO_SUBSTITUTE,
    compare_rows,
    conclude,
    means_section,
    report_comparison,
)
from study.compare.statistics import mean_with_interval
from study.tests.made_up import write_cell, write_comparison
from tests.calib_tools.report.made_up import PNG, write_evaluation

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, but not rendered."""
    monkeypatch.setattr(module, "to_png", lambda figure: PNG)


def test_differences_are_corrected_over_methods(tmp_path: Path) -> None:
    found = read_cells(write_comparison(tmp_path, temperature=0.8))
    table = compare_rows(found, found.on(""), "ce_dice", "")
    plain = table[(table["temperature"] == "without") & (table["reference"] == "ce_dice")]
    family = plain[plain["method"] == "nacl"].set_index("measure")
    for alone in ("dsc", "ece", "nll_all"):
        assert family.loc[alone, "p_value_holm"] == family.loc[alone, "p_value"]
    itself = table[table["method"] == table["reference"]]
    # A temperature changes no segmentation
    assert not {"dsc", "hd95"} & {*itself["measure"]}
    scaled = itself[(itself["method"] == "ce_dice") & (itself["measure"] == "ece_all")].iloc[0]
    pair = [found.values(Row("ce_dice", t), "ece_all") for t in ("with", "without")]
    assert scaled["mean"] == pytest.approx((pair[0] - pair[1]).mean())
    assert scaled["high"] - scaled["low"] < 0.01  # the same networks are paired


def test_means_have_published_values_and_the_spread_over_seeds(tmp_path: Path) -> None:
    found = read_cells(write_comparison(tmp_path))
    section = means_section(found, found.on(""), "")
    table = section.table.set_index(["method", "measure"])
    values = found.values(Row("ce_dice"), "ece_all")
    record = table.loc[("ce_dice", "ece_all")]
    expected = mean_with_interval(values, found.patients[""])[:3]
    assert tuple(record[["mean", "low", "high"]]) == expected
    assert record["sd_seeds"] == pytest.approx(values.mean(1).std(ddof=1))
    heads, lines = section.grid()
    (cell,) = (line[heads.index("CE+DSC")] for line in lines if line[0].text == "ECE foreground ↓")
    assert [*cell.notes][-2:] == ["paper 0.137", "0.100 if true"]


def test_the_script_runs_where_the_wheel_is_installed(tmp_path: Path) -> None:
    for package in ("calib_components", "calib_workflows", "calib_tools"):
        shutil.copytree(ROOT / package, tmp_path / "packages" / package)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "packages")}
    command = [sys.executable, ROOT / "scripts/report.py", ROOT / "study/results/flare/two_folds"]
    subprocess.run([*command, "--out", tmp_path / "out"], check=True, env=environment)
    assert (tmp_path / "out/index.html").exists()


def test_case_with_nothing_to_find_is_ranked_by_dsc_alone(tmp_path: Path) -> None:
    undefined = np.where(np.arange(16) == 5, np.nan, 0.8)
    names = [f"{metric}_{s}" for metric in ("dsc", "hd95") for s in ("RV", "MYO", "LV")]
    for method, values in (("nacl", undefined), ("svls", np.where(np.isnan(undefined), 0, 0.8))):
        write_evaluation(write_cell(tmp_path, method), changed=dict.fromkeys(names, values))
    found = read_cells(tmp_path)
    costs = costs_of(found, [Row("nacl"), Row("svls")], ["dsc", "ece_all"])
    assert costs[:, 5, 0].tolist() == [-1, 0]
    assert np.isnan(costs[:, 5, 1]).all()


def test_report_of_a_comparison(tmp_path: Path) -> None:
    write_comparison(tmp_path / "runs", temperature=0.8, test_sets=("scanner",))
    (tmp_path / "runs/nacl/seed0/cases").mkdir()
    (tmp_path / "runs/nacl/seed0/cases/best.png").write_bytes(PNG)
    report_comparison(
        tmp_path / "runs", out=tmp_path / "out", reference="ce_dice", compact=tmp_path / "compact"
    )
    page = (tmp_path / "out/index.html").read_text()
    assert (
        page.index("NACL is better than CE+DSC: NLL over all voxels ")
        < page.index("shift): scanner")
        < page.index("<summary>Means")
    )
    assert "Not finished yet: svls, seed 0; svls, seed 1." in page
    assert "NACL: best case" in page
    csv = {file.name for file in (tmp_path / "out").glob("*.csv")}
    assert csv == {
        "summary.csv",
        "structures.csv",
        "all_cases.csv",
        "means.csv",
        "means_on_scanner.csv",
        "differences.csv",
        "differences_on_scanner.csv",
        "ranks_paper.csv",
        "ranks_probabilities.csv",
    }
    table = pd.read_csv(tmp_path / "out/ranks_probabilities.csv")
    ranks = table.pivot(index="label", columns="kind", values="mean")
    assert (
        ranks[["sum-rank", "sum-rank scanner"]].sum(axis=1).tolist()
        == ranks["sum-rank of all"].tolist()
    )
    assert {"nll_all", "nll_predicted"} <= {
        *pd.read_csv(tmp_path / "out/differences.csv")["measure"]
    }
    report_comparison(tmp_path / "compact", out=tmp_path / "again")
    first, second = (pd.read_csv(tmp_path / name / "means.csv") for name in ("out", "again"))
    pd.testing.assert_frame_equal(first, second, rtol=1e-2, atol=1e-5)
    assert (tmp_path / "out" / "reliability_nacl.png").exists()


def test_a_lower_nll_does_not_make_up_for_a_lower_dsc(tmp_path: Path) -> None:
    write_comparison(tmp_path)
    found = conclude(read_cells(tmp_path), "ce_dice").sentences
    assert [sentence.partition(":")[0] for sentence in found] == ["NACL is better than CE+DSC"]
    for seed in (0, 1):
        changed = dict.fromkeys([f"dsc_{s}" for s in ("RV", "MYO", "LV")], 0.4)
        write_evaluation(tmp_path / f"nacl/seed{seed}", seed=seed, gap=0.02, changed=changed)
    found = conclude(read_cells(tmp_path), "ce_dice").sentences
    assert found[0].startswith("NACL and CE+DSC: neither is called better. NLL over all voxels: ")
    assert found[1:] == [NO_SUBSTITUTE]


def test_report_without_the_reference_says_so(tmp_path: Path) -> None:
    write_cell(tmp_path / "runs", "svls")
    write_cell(tmp_path / "runs", "ce_dice")
    report_comparison(tmp_path / "runs", out=tmp_path / "out")
    assert "No differences: nacl is not among" in (tmp_path / "out/index.html").read_text()
    assert not (tmp_path / "out/differences.csv").exists()


@pytest.mark.parametrize(
    ("folder", "options", "keyword"),
    [
        ("runs", {"reference": "ncl"}, "--reference"),
        ("empty", {}, "no finished cell"),
    ],
)
def test_options_and_folders_that_do_not_fit_are_refused(
    folder: str,
    options: dict[str, Any],
    keyword: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_cell(Path("runs"), "nacl")
    with pytest.raises(InputError, match=keyword):
        report_comparison(Path(folder), **options)
    assert not Path("report").exists()
