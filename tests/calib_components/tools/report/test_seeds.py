"""Variation over seeds and patients, and rankings by calibration, of results that are made up."""

from __future__ import annotations

import csv
import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau
from tests.calib_components.tools.compare.made_up import make_finished_cell, without_temperature

from calib_components.tools.compare import report
from calib_components.tools.compare.cell_settings import Condition
from calib_components.tools.report.measured import Evaluation, Method, Run
from calib_components.tools.report.results import Results, TrainedMethod, read_results
from calib_components.tools.report.seeds import _deviations, calibration_ranks_section
from calib_components.tools.report.statistics import holm, mean_with_interval, paired_difference

METHODS = {"ce_dice": 0.13, "svls": 0.10, "nacl": 0.05}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three losses of three seeds, with a temperature and a test set."""
    folder = tmp_path_factory.mktemp("seeds") / "results"
    for method, ece in METHODS.items():
        for seed in range(3):
            make_finished_cell(folder, method, seed, ece + 0.01 * seed, temperature=1.2, test_sets=("lge",))
    plan = [{"method": method, "seed": seed, "commands": []} for method in METHODS for seed in range(3)]
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


@pytest.fixture(scope="module")
def page(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report"
    report(whole, out)
    return out


@pytest.fixture(scope="module")
def found(whole: Path) -> Results:
    return read_results(whole)


def records(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def test_deviations_by_hand() -> None:
    """Means of the runs: 1 and 3. Means of patients a, b over the runs: (0 + 4) / 2 and 2; c has no value."""

    def run(*values: float) -> Run:
        cases = ["a1", "a2", "b1", "c1"]
        patients = {case: case[0] for case in cases}
        return Run([Evaluation(Path(), patients, cases, {"ece": np.array(values)}, [], [], {})])

    method = Method("m", "m", [run(0, 1, 2, np.nan), run(2, 5, 2, np.nan)])
    assert _deviations(method, "ece", method.runs[0].patients) == pytest.approx((2**0.5, 0))
    one = Method("m", "m", method.runs[:1])
    assert _deviations(one, "ece", one.runs[0].patients) == pytest.approx((np.nan, 1.5 / 2**0.5), nan_ok=True)


def test_variation_has_both_standard_deviations(found: Results, page: Path) -> None:
    rows = records(page / "variation.csv")
    assert [row["method"] for row in rows[::6]] == [*METHODS, *METHODS]
    for row in rows:
        method = next(
            m for m in found.at(Condition(scaled=row["temperature"] == "with")).methods if m.name == row["method"]
        )
        means = [np.nanmean(run.values(row["measure"])) for run in method.runs]
        assert float(row["sd_seeds"]) == pytest.approx(np.std(means, ddof=1))
        of_cases = method.values(row["measure"]).reshape(-1, 2)  # two cases a patient
        assert float(row["sd_patients"]) == pytest.approx(np.std(of_cases.mean(1), ddof=1))
        assert row["seeds"] == "3"
    text = (page / "report.md").read_text()
    assert "square root of the number of patients, 6," in text
    shown = next(line for line in text.split("## Variation")[1].splitlines() if line.startswith("| NACL |"))
    nacl = {row["measure"]: row for row in rows if row["method"] == "nacl" and row["temperature"] == "without"}
    assert f"{float(nacl['ece']['sd_seeds']):.4f} / {float(nacl['ece']['sd_patients']):.4f}" in shown


def test_intervals_of_means_are_over_seeds_and_patients(found: Results, page: Path) -> None:
    row = next(row for row in records(page / "means.csv") if row["method"] == "nacl" and row["measure"] == "ece")
    method = next(method for method in found.methods if method.name == "nacl")
    expected = mean_with_interval(method.by_run("ece"), found.patients)
    assert [float(row[name]) for name in ("mean", "low", "high")] == pytest.approx(expected)
    over_patients = mean_with_interval(method.values("ece"), found.patients)
    assert expected.high - expected.low > 1.5 * (over_patients.high - over_patients.low)
    text = (page / "report.md").read_text()
    assert text.count("| 1 / 0 |") == 2 * 6  # each network misses one structure, without and with T, on both test sets
    assert "by a bootstrap of two levels" in text
    assert "95 % intervals over seeds and patients" in text


@pytest.mark.parametrize("test_set", ["", "lge"])
def test_rankings_are_those_of_the_means(found: Results, page: Path, test_set: str) -> None:
    rows = [row for row in records(page / "calibration_ranks.csv") if row["test_set"] == test_set]
    for temperature in ("without", "with"):
        methods = found.at(Condition(test_set, temperature == "with")).methods
        for measure in ("ece", "ece_predicted", "ece_all", "nll_all"):
            means = {method.name: np.mean(method.values(measure)) for method in methods}
            ranks = {
                row["method"]: float(row["rank"])
                for row in rows
                if (row["measure"], row["temperature"]) == (measure, temperature)
            }
            assert sorted(means, key=lambda name: means[name]) == sorted(ranks, key=lambda name: ranks[name])
    assert (page / f"calibration_ranks{'_on_lge' if test_set else ''}.png").exists()


@pytest.mark.parametrize("test_set", ["", "lge"])
def test_differences_are_paired_by_condition_and_drawn_together_for_the_same_networks(
    found: Results, page: Path, test_set: str
) -> None:
    rows = records(page / f"conditions{test_set and f'_on_{test_set}'}.csv")
    # Each of five measures, for both conditions of the reference: two methods in both conditions, and itself in the
    # other one. DSC and HD95, which a temperature leaves as they are: two methods in both conditions.
    assert len(rows) == 5 * 2 * (2 * 2 + 1) + 2 * 2 * 2
    of_name = {
        (method.name, scaled): method
        for scaled in (False, True)
        for method in found.at(Condition(test_set, scaled)).methods
    }
    for row in rows:
        method = of_name[row["method"], row["temperature"] == "with"]
        base = of_name["nacl", row["reference_temperature"] == "with"]
        expected = paired_difference(
            method.comparable(row["measure"]),
            base.comparable(row["measure"]),
            found.at(Condition(test_set)).patients,
            same_runs=row["method"] == "nacl",
        )
        assert [float(row[name]) for name in ("mean", "low", "high")] == pytest.approx(expected[:3], nan_ok=True)
    adjusted = holm([float(row["p_value"]) for row in rows[:2]])  # the DSC of two methods without temperature
    assert [float(row["p_value_holm"]) for row in rows[:2]] == pytest.approx(adjusted, nan_ok=True)


def test_tables_of_differences_have_the_same_p_values(page: Path) -> None:
    """Those of the same difference, corrected in the same way."""
    kept = {(row["method"], row["measure"]): row["p_value_holm"] for row in records(page / "differences.csv")}
    own = [
        row
        for row in records(page / "conditions.csv")
        if (row["temperature"], row["reference_temperature"]) == ("without", "without")
    ]
    assert len(own) == 2 * 7
    assert all(row["p_value_holm"] == kept[row["method"], row["measure"]] for row in own)
    p_values = [float(row["p_value"]) for row in own if row["measure"] in ("nll_all", "ece_all", "ece_predicted")]
    found = [float(row["p_value_holm"]) for row in own if row["measure"] in ("nll_all", "ece_all", "ece_predicted")]
    assert found == pytest.approx(holm(p_values))


@pytest.mark.parametrize("finished", [0, 1])
def test_runs_whose_temperature_is_to_come_are_not_compared_with_it(finished: int, tmp_path: Path) -> None:
    """Folds are trained before one temperature is fitted to all; here only some runs of NACL have theirs."""
    folder = tmp_path / "results"
    for method, seed, fold in product(METHODS, range(2), range(2)):
        test_sets = ("lge",) * (method == "nacl")
        make_finished_cell(folder, method, seed, METHODS[method], fold, 1.2, test_sets)
        if method == "nacl" and seed >= finished:
            without_temperature(folder / method / f"seed{seed}_fold{fold}")
    report(folder, tmp_path / "report")
    rows = records(tmp_path / "report" / "conditions.csv")
    compared = {(row["method"], row["temperature"], row["reference_temperature"]) for row in rows}
    assert (("svls", "without", "with") in compared) == (finished > 0)
    itself = [row for row in rows if (row["method"], row["measure"]) == ("nacl", "nll_all")]
    assert len(itself) == 2 * finished  # in both directions
    if finished:
        seed0 = [row.runs[0].values("nll_all") for row in _nacl(folder)]
        forth, back = (float(row["mean"]) for row in itself)
        assert forth == pytest.approx(float(np.mean(seed0[1] - seed0[0])))
        assert back == pytest.approx(-forth)


def _nacl(folder: Path) -> list[TrainedMethod]:
    """NACL without and with temperature."""
    found = read_results(folder)
    return [m for scaled in (False, True) for m in found.at(Condition(scaled=scaled)).methods if m.name == "nacl"]


def test_test_set_of_some_folds_is_named_and_left_out(tmp_path: Path) -> None:
    for fold in range(2):
        make_finished_cell(tmp_path / "results", "nacl", 0, 0.1, fold, test_sets=("lge",) * (fold == 0))
    report(tmp_path / "results", tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Not evaluated with all folds yet: lge." in text
    assert not (tmp_path / "report" / "means_on_lge.csv").exists()


def test_agreement_is_that_of_the_papers_region_and_the_predicted_one(found: Results) -> None:
    caption = calibration_ranks_section(found).caption
    means = [[np.nanmean(method.values(name)) for method in found.methods] for name in ("ece", "ece_predicted")]
    assert f"own testing: {kendalltau(*means).statistic:+.2f} without temperature and" in caption


def test_one_seed_has_no_variation_and_one_loss_no_ranking(whole: Path, tmp_path: Path) -> None:
    make_finished_cell(tmp_path / "one", "nacl", 0, 0.05, temperature=1.2)
    report(tmp_path / "one", tmp_path / "report")
    assert not (tmp_path / "report" / "variation.csv").exists()
    assert not (tmp_path / "report" / "calibration_ranks.csv").exists()
    assert not (tmp_path / "report" / "conditions.csv").exists()
    assert "reflect the choice of test patients" in (tmp_path / "report" / "report.md").read_text()
    report(whole, tmp_path / "report")  # replaces it, and is replaced
    for name in ("calibration_ranks_on_lge.png", "conditions_on_lge.csv"):
        assert (tmp_path / "report" / name).exists()
    report(tmp_path / "one", tmp_path / "report")
    assert not [*(tmp_path / "report").glob("calibration_ranks*"), *(tmp_path / "report").glob("conditions*")]
