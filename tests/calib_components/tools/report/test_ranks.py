"""Ranks of the means and on single cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calib_components.tools.compare import statistics
from calib_components.tools.report.measured import Comparison, Evaluation, Method, Run
from calib_components.tools.report.ranks import (
    PATIENTS,
    RUNS,
    RankedCases,
    case_ranks,
    column_ranks,
    mean_case_rank_with_interval,
    means_over_common_cases,
    sum_rank,
    sum_rank_with_interval,
)
from calib_components.tools.report.sections import ranked_cases
from calib_components.tools.report.statistics import paired_difference

NAN = np.nan
PEOPLE = [f"p{i:02d}" for i in range(12)]


@pytest.fixture
def two_patients_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    """For examples small enough to work out by hand."""
    monkeypatch.setattr(statistics, "FEWEST_PATIENTS", 2)


def test_ties_share_the_mean_rank_and_undefined_means_rank_last() -> None:
    ranks = column_ranks([[0.9, 2.0], [0.9, NAN], [0.8, 1.0]], [True, False])
    np.testing.assert_array_equal(ranks, [[1.5, 2], [1.5, 3], [3, 1]])


def test_means_over_common_cases_do_not_reward_a_miss() -> None:
    hd95 = [[[2.0], [6.0], [4.0]], [[2.5], [NAN], [4.5]]]  # the second method misses the difficult case
    np.testing.assert_array_equal(means_over_common_cases(hd95), [[3.0], [3.5]])
    assert np.isnan(means_over_common_cases([[[NAN], [1.0]], [[1.0], [NAN]]])).all()


@pytest.mark.usefixtures("two_patients_suffice")
def test_mean_case_rank_by_hand() -> None:
    values = [  # two cases of DSC and HD95
        [[0.9, 2.0], [0.7, NAN]],
        [[0.8, 2.0], [0.7, NAN]],
        [[0.6, NAN], [0.8, NAN]],
    ]
    ranks = case_ranks(values, [True, False])
    np.testing.assert_array_equal(ranks[0], [[1, 1.5], [2.5, NAN]])
    np.testing.assert_array_equal(ranks[1], [[2, 1.5], [2.5, NAN]])
    np.testing.assert_array_equal(ranks[2], [[3, 3], [1, NAN]])  # missed it: last
    estimates = mean_case_rank_with_interval(values, [True, False], ["a", "b"])
    assert [estimate.mean for estimate in estimates] == pytest.approx([5 / 3, 2, 7 / 3])
    # Of the four draws of two patients, a quarter has the first alone: ranks 1 and 1.5; a quarter the second: 2.5.
    assert estimates[0][1:] == pytest.approx((1.25, 2.5))


@pytest.mark.usefixtures("two_patients_suffice")
def test_interval_of_the_sum_rank_by_hand() -> None:
    # Of patients a and b the first method is better on a, by more, and the second on b: drawn b alone, it wins.
    values = np.array([[[[0.9], [0.9], [0.7]]], [[[0.6], [0.6], [0.8]]]])
    first, second = sum_rank_with_interval([RankedCases(values, ["a", "a", "b"])], [True])
    assert first == (1, 1, 2)
    assert second == (2, 1, 2)


def test_interval_of_the_sum_rank_is_that_of_every_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 200)
    values = np.random.default_rng(0).normal(size=(3, 40, 2))
    values[1, :5, 1] = NAN
    groups = np.array([f"p{i // 2}" for i in range(40)])
    patients, better = np.unique(groups), [True, False]
    draws = np.random.default_rng((0, PATIENTS)).integers(20, size=(200, 20))
    drawn = [np.concatenate([np.flatnonzero(groups == patients[i]) for i in draw]) for draw in draws]
    sums = [sum_rank(means_over_common_cases(values[:, cases]), better) for cases in drawn]
    estimates = sum_rank_with_interval([RankedCases(values[:, None], groups.tolist())], better)
    expected = [sum_rank(means_over_common_cases(values), better), *np.quantile(sums, [0.025, 0.975], axis=0)]
    np.testing.assert_allclose(np.transpose(estimates), expected)


def test_interval_over_runs_patients_and_data_sets_is_that_of_every_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two test sets of the same networks and patients, and one of others."""
    monkeypatch.setattr(statistics, "RESAMPLES", 200)
    rng, better = np.random.default_rng(0), [True, False]
    datasets = [
        RankedCases([rng.normal(size=(runs, 10, 2)) for runs in (3, 1, 2)], PEOPLE[:10], networks=0, population=0),
        RankedCases([rng.normal(size=(runs, 10, 2)) for runs in (3, 1, 2)], PEOPLE[:10], networks=0, population=0),
        RankedCases([rng.normal(size=(runs, 12, 2)) for runs in (3, 2, 2)], PEOPLE, networks=1, population=2),
    ]
    datasets[0].values[2][1, 4, 1] = NAN  # undefined in one run: no common case
    sums = np.zeros((200, 3))
    for dataset in datasets:
        number = len(dataset.patients)
        patients = np.random.default_rng((0, PATIENTS, dataset.population)).integers(number, size=(200, number))
        runs = [
            np.random.default_rng((0, RUNS, dataset.networks, i)).integers(len(of), size=(200, len(of)))
            for i, of in enumerate(dataset.values)
        ]
        for draw, cases in enumerate(patients):
            means = np.stack([of[drawn[draw]].mean(0) for of, drawn in zip(dataset.values, runs, strict=True)])
            means[:, np.isnan(dataset.of_methods).any(0)] = NAN
            sums[draw] += sum_rank(means_over_common_cases(means[:, cases]), better)
    estimates = sum_rank_with_interval(datasets, better)
    np.testing.assert_allclose(np.transpose(estimates)[1:], np.quantile(sums, [0.025, 0.975], axis=0))
    totals = sum(sum_rank(means_over_common_cases(dataset.of_methods), better) for dataset in datasets)
    assert [estimate.mean for estimate in estimates] == totals.tolist()


def test_copies_of_a_data_set_double_its_interval() -> None:
    rng = np.random.default_rng(0)
    cases = RankedCases([rng.normal(size=(2, 12, 3)) for _ in range(3)], PEOPLE)
    better = [True, False, False]
    one = np.array(sum_rank_with_interval([cases], better))
    np.testing.assert_allclose(sum_rank_with_interval([cases, cases], better), 2 * one)
    apart = np.array(sum_rank_with_interval([cases, cases._replace(population=1, networks=1)], better))
    assert ((apart[:, 2] - apart[:, 1]) <= 2 * (one[:, 2] - one[:, 1])).all()
    assert (apart[:, 2] - apart[:, 1]).sum() < 2 * (one[:, 2] - one[:, 1]).sum()


def test_a_data_set_of_few_patients_leaves_no_interval() -> None:
    rng = np.random.default_rng(0)
    many, few = (RankedCases([rng.normal(size=(1, n, 1)) for _ in range(2)], PEOPLE[:n]) for n in (12, 5))
    assert not np.isnan(sum_rank_with_interval([many], [True])[0].low)
    assert np.isnan(sum_rank_with_interval([many, few], [True])[0].low)


def test_one_patient_gives_no_interval() -> None:
    (first, _) = sum_rank_with_interval([RankedCases(np.array([[[[0.9]]], [[[0.6]]]]), ["a"])], [True])
    assert first.mean == 1
    assert np.isnan(first[1:]).all()


def test_patients_without_a_value_do_not_count_in_the_interval_of_the_sum_rank() -> None:
    """HD95 is common to five of six patients."""
    values = np.random.default_rng(0).uniform(size=(2, 1, 6, 2))
    patients = [f"p{number}" for number in range(6)]
    (whole, _) = sum_rank_with_interval([RankedCases(list(values), patients)], [True, False])
    assert not np.isnan(whole.low)
    values[0, 0, 0, 1] = NAN
    (fewer, _) = sum_rank_with_interval([RankedCases(list(values), patients)], [True, False])
    assert np.isnan(fewer.low)


def test_case_with_nothing_to_find_is_won_by_the_method_that_finds_nothing() -> None:
    """Two cases; in the second, the first method is right, and the other adds a structure."""

    def method(name: str, dsc: list[float], ece: list[float], spurious: list[str]) -> Method:
        columns = {"dsc_a": np.array(dsc), "hd95_a": np.array([2.0, NAN]), "ece_predicted": np.array(ece)}
        patients = {"p": "p", "q": "q"}
        return Method(name, name, [Run([Evaluation(Path(), patients, ["p", "q"], columns, [], spurious, {})])])

    right, wrong = method("right", [0.8, NAN], [0.1, NAN], []), method("wrong", [0.8, 0.0], [0.2, 0.5], ["q"])
    ranked = ranked_cases(Comparison([right, wrong]), ("dsc", "hd95", "ece_predicted"))
    ranks = case_ranks(ranked.of_methods, [True, False, False])
    np.testing.assert_array_equal(ranks[0], [[1.5, 1.5, 1], [1, NAN, NAN]])
    np.testing.assert_array_equal(ranks[1], [[1.5, 1.5, 2], [2, NAN, NAN]])
    assert paired_difference(right.comparable("dsc"), wrong.comparable("dsc"), ["p", "q"]).mean == 0.5
    assert right.values("dsc").tolist() == pytest.approx([0.8, NAN], nan_ok=True)  # means leave the case out
