"""The report over several data sets, of results that are made up."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import rankdata

from calib_components.errors import InputError
from calib_components.tools.comparison import report, report_folders
from calib_components.tools.comparison.cell_settings import Condition
from calib_components.tools.comparison.overview import report_datasets
from calib_components.tools.comparison.ranks import sum_rank_over_datasets, sum_rank_with_interval
from calib_components.tools.comparison.results import read_results
from tests.calib_components.tools.comparison.made_up import make_finished_cell

METHODS = {"ce_dice": 0.13, "svls": 0.10, "nacl": 0.05}


def make(
    folder: Path, methods: dict[str, float], shift: float, *test_sets: str, temperature: float | None = 1.2
) -> Path:
    for method, ece in methods.items():
        for seed in range(2):
            make_finished_cell(folder, method, seed, ece + shift, temperature=temperature, test_sets=test_sets)
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
            assert {place: float(rows[method][place]) for place in sums} == sums
            assert float(rows[method]["sum_rank"]) == sum(sums.values())
            # Fewer than six patients in one of the test sets: no interval.
            assert rows[method]["sum_rank_low"] == "nan"
        assert (page / f"sum_rank_{name}.png").exists()
        assert (page / f"mean_case_rank_{name}.png").exists()


def test_page_begins_with_the_lowest_sum_ranks_and_names_what_is_left_out(page: Path) -> None:
    text = (page / "report.md").read_text()
    assert text.startswith("# Losses ranked over data sets: ACDC, lge, abdomen\n\nThe paper's measures, without temp")
    assert "> Not evaluated on all, and left out: CE+DSC." in text
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


def test_without_temperature_there_are_rankings_without_it(folders: list[Path], tmp_path: Path) -> None:
    plain = make(tmp_path / "plain", METHODS, 0, temperature=None)
    report_datasets([folders[0], _renamed(plain)], tmp_path / "report")
    assert {path.stem for path in (tmp_path / "report").glob("ranks_*.csv")} == {"ranks_paper", "ranks_probabilities"}


def _renamed(folder: Path) -> Path:
    for file in folder.rglob("cases.csv"):
        file.write_text(file.read_text().replace("_RV", "_liver"))
    for file in folder.rglob("summary.json"):
        file.write_text(file.read_text().replace("RV", "liver"))
    return folder


def test_what_does_not_fit_is_an_error(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected another name of the data set, got ACDC twice"):
        report_datasets([folders[0], folders[0]], tmp_path / "report")
    other = _renamed(make(tmp_path / "other", {"nacl": 0.1}, 0))
    with pytest.raises(InputError, match="other: expected at least two methods that all test sets have, got 1"):
        report_datasets([folders[0], other], tmp_path / "report")
    with pytest.raises(InputError, match="--reference: expected one results folder with it, got several"):
        report_folders(*folders, out=tmp_path / "report", reference="nacl")
    with pytest.raises(InputError, match="--validation: expected an evaluation folder with it, got results"):
        report_folders(*folders, out=tmp_path / "report", validation=folders[0])
    with pytest.raises(InputError, match="--out: expected a folder of its own"):
        report_datasets(folders, folders[1])
    assert not re.findall("report", " ".join(path.name for path in tmp_path.iterdir()))


def test_sum_rank_of_one_data_set_is_its_own_and_of_copies_a_multiple() -> None:
    rng = np.random.default_rng(0)
    values, patients = [rng.normal(size=(2, 12, 3)) for _ in range(3)], [f"p{i // 2}" for i in range(12)]
    better = [True, False, False]
    one = sum_rank_with_interval(values, better, patients)
    assert sum_rank_over_datasets([values], better, [patients]) == one
    two = sum_rank_over_datasets([values, values], better, [patients, patients])
    for single, double in zip(one, two, strict=True):
        assert double.mean == 2 * single.mean
        assert 2 * single.low <= double.low <= double.mean <= double.high <= 2 * single.high
