"""The report over several data sets, of results that are made up."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import rankdata
from tests.calib_components.tools.compare.made_up import make_finished_cell, without_temperature

from calib_components.errors import InputError
from calib_components.tools.compare import report, report_folders
from calib_components.tools.compare.cell_settings import Condition
from calib_components.tools.report.overview import report_datasets
from calib_components.tools.report.results import read_results

METHODS = {"ce_dice": 0.13, "svls": 0.10, "nacl": 0.05}


def make(
    folder: Path, methods: dict[str, float], shift: float, *test_sets: str, temperature: float | None = 1.2
) -> Path:
    for method, ece in methods.items():
        for seed in range(2):
            make_finished_cell(folder, method, seed, ece + shift, None, temperature, test_sets, folder.name)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three losses on the paper's data set and a test set of other origin, two of them on a data set of one's own."""
    base = tmp_path_factory.mktemp("overview")
    first = make(base / "heart", METHODS, 0, "lge")
    second = make(base / "abdomen", {name: METHODS[name] for name in ("nacl", "svls")}, 0.02)
    for file in second.rglob("cases.csv"):
        file.write_text(file.read_text().replace("_RV", "_liver").replace("_MYO", "_spleen").replace("_LV", "_aorta"))
    for file in second.rglob("summary.json"):
        file.write_text(file.read_text().replace("RV", "liver"))
    return [first, second]


@pytest.fixture(scope="module")
def page(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report"
    report_datasets(folders, out)
    return out


def records(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def test_ranks_are_summed_over_data_sets_and_test_sets(folders: list[Path], page: Path) -> None:
    first, second = map(read_results, folders)
    for name, measures, scaled in (
        ("paper", ("dsc", "hd95", "ece", "cece"), False),
        ("paper_temperature", ("dsc", "hd95", "ece", "cece"), True),
        ("probabilities", ("dsc", "hd95", "nll_all", "ece_all", "ece_predicted"), False),
        ("probabilities_temperature", ("dsc", "hd95", "nll_all", "ece_all", "ece_predicted"), True),
    ):
        expected = {"svls": {}, "nacl": {}}
        for place, results, test_set in (("ACDC", first, ""), ("lge", first, "lge"), ("abdomen", second, "")):
            of_name = {m.name: m for m in results.at(Condition(test_set, scaled)).methods}
            for measure in measures:
                both = np.stack([of_name[method].comparable(measure).mean(0) for method in expected])
                means = both[:, ~np.isnan(both).any(0)].mean(1)
                ranks = rankdata(-means if measure == "dsc" else means)
                for method, rank in zip(expected, ranks, strict=True):
                    expected[method][place] = expected[method].get(place, 0) + rank
        rows = {row["method"]: row for row in records(page / f"ranks_{name}.csv")}
        assert sorted(rows) == ["nacl", "svls"]
        for method, sums in expected.items():
            assert {place: float(rows[method][f"sum_rank_on_{place}"]) for place in sums} == sums
            assert float(rows[method]["sum_rank"]) == sum(sums.values())
            # Fewer than six patients in one of the test sets: no interval.
            assert rows[method]["sum_rank_low"] == "nan"
        assert (page / f"sum_rank_{name}.png").exists()
        assert (page / f"mean_case_rank_{name}.png").exists()


def test_page_begins_with_the_lowest_sum_ranks_and_names_what_is_left_out(page: Path) -> None:
    text = (page / "report.md").read_text()
    assert text.startswith("# Losses ranked over data sets: ACDC, lge, abdomen\n\nThe paper's measures, without temp")
    assert "> Not evaluated on all, and left out: CE+DSC. Too few patients for intervals of the sum-rank: lge." in text
    assert "DSC foreground" not in text
    rows = sorted(records(page / "ranks_paper.csv"), key=lambda row: float(row["sum_rank"]))
    labels = {"nacl": "NACL", "svls": "SVLS"}
    shown = [f"{labels[row['method']]} {float(row['sum_rank']):g}" for row in rows]
    assert f"The paper's measures, without temperature: lowest sum-rank {shown[0]}, then {shown[1]}." in text


def test_means_of_all_data_sets(folders: list[Path], page: Path) -> None:
    rows = records(page / "means.csv")
    assert list(dict.fromkeys(row["dataset"] for row in rows)) == ["ACDC", "lge", "abdomen"]
    method = next(m for m in read_results(folders[1]).at(Condition(scaled=True)).methods if m.name == "nacl")
    (row,) = (
        row
        for row in rows
        if (row["dataset"], row["method"], row["measure"], row["temperature"]) == ("abdomen", "nacl", "ece_all", "with")
    )
    assert float(row["mean"]) == pytest.approx(np.mean(method.values("ece_all")))


def test_is_the_same_byte_for_byte_and_replaces_another_report(folders: list[Path], page: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    report(folders[0], out)
    report_folders(*folders, out=out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in page.iterdir()
    }
    report(folders[0], out)
    assert not list(out.glob("*_paper*"))


def test_methods_of_equal_sum_rank_are_named_together(tmp_path: Path) -> None:
    """The same numbers under three names."""
    folders = [_renamed(make(tmp_path / name, METHODS, 0)) for name in ("heart", "abdomen")]
    for folder in folders:
        for cases in folder.glob("*/seed*/cases.csv"):
            cases.write_bytes((folder / "ce_dice" / cases.parent.name / "cases.csv").read_bytes())
    report_datasets(folders, tmp_path / "report")
    first = (tmp_path / "report" / "report.md").read_text().split("\n\n")[1]
    assert "lowest sum-rank CE+DSC 16 [12, 20] and NACL 16 [12, 20] and SVLS 16 [12, 20]." in first


def test_without_temperature_or_regions_there_is_no_ranking_by_them(folders: list[Path], tmp_path: Path) -> None:
    plain = _renamed(make(tmp_path / "plain", METHODS, 0, temperature=None))
    report_datasets([folders[0], plain], tmp_path / "report")
    assert {path.stem for path in (tmp_path / "report").glob("ranks_*.csv")} == {"ranks_paper"}
    text = (tmp_path / "report" / "report.md").read_text()
    why = "fewer than two methods were evaluated so on all"
    assert f"No ranking by the paper's measures, with temperature: {why}." in text
    assert (
        "No ranking by all voxels and predicted foreground, without temperature: not all data sets have these measures."
        in text
    )
    assert "lowest sum-rank" in text.split("\n\n")[1]


def test_one_method_with_a_temperature_on_all_is_not_ranked(folders: list[Path], tmp_path: Path) -> None:
    """The folds of the others are trained, but have no temperature yet."""
    other = tmp_path / "other"
    for method in METHODS:
        for fold in (0, 1):
            make_finished_cell(other, method, 0, 0.1, fold, 1.2)
            if method != "nacl":
                without_temperature(other / method / f"seed0_fold{fold}")
    report_datasets([folders[0], _renamed(other)], tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "No ranking by the paper's measures, with temperature: fewer than two methods" in text
    assert "No ranking by the paper's measures, without" not in text


def test_names_that_are_there_twice_have_the_folder_before_them(folders: list[Path], tmp_path: Path) -> None:
    other = make(tmp_path / "other", METHODS, 0.01, "lge")
    report_datasets([folders[0], other], tmp_path / "report")
    title = (tmp_path / "report" / "report.md").read_text().splitlines()[0]
    assert title == "# Losses ranked over data sets: heart ACDC, heart lge, other ACDC, other lge"


def test_test_sets_of_the_same_patients_are_drawn_together(tmp_path: Path) -> None:
    folder = make(tmp_path / "heart", METHODS, 0, "bssfp", "lge")
    report_datasets([folder, _renamed(make(tmp_path / "abdomen", METHODS, 0))], tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Taken to be of the same patients, who have the same names: bssfp, lge." in text


@pytest.mark.parametrize("is_same", [True, False])
def test_results_of_the_same_data_share_their_patients(is_same: bool, tmp_path: Path) -> None:
    """In two folders: other losses, say; data sets whose patients only have the same names do not."""
    for name in ("first", "second"):
        for method in METHODS:
            make_finished_cell(tmp_path / name, method, 0, 0.1, datalist="same" if is_same else name)
    report_datasets([tmp_path / "first", tmp_path / "second"], tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    shared = "Taken to be of the same patients, who have the same names: first ACDC, second ACDC."
    assert (shared in text) == is_same


def _renamed(folder: Path) -> Path:
    for file in folder.rglob("cases.csv"):
        file.write_text(file.read_text().replace("_RV", "_liver"))
    for file in folder.rglob("summary.json"):
        file.write_text(file.read_text().replace("RV", "liver"))
    return folder


def test_what_does_not_fit_is_an_error(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folders: expected other data sets or folders of other names, got heart ACDC"):
        report_datasets([folders[0], folders[0]], tmp_path / "report")
    other = _renamed(make(tmp_path / "other", {"nacl": 0.1}, 0))
    message = "folders: expected at least two methods that all data sets have, got 1; other has nacl"
    with pytest.raises(InputError, match=message):
        report_datasets([folders[0], other], tmp_path / "report")
    with pytest.raises(InputError, match="--reference: expected one results folder with it, got several"):
        report_folders(*folders, out=tmp_path / "report", reference="nacl")
    with pytest.raises(InputError, match="--validation: expected an evaluation folder with it, got results"):
        report_folders(*folders, out=tmp_path / "report", validation=folders[0])
    with pytest.raises(InputError, match="--out: expected a folder of its own"):
        report_datasets(folders, folders[1])
    assert not (tmp_path / "report").exists()
