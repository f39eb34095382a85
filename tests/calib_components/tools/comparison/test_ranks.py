"""Ranks of the means and on single cases."""

from __future__ import annotations

import numpy as np
import pytest

from calib_components.tools.comparison import statistics
from calib_components.tools.comparison.ranks import (
    case_ranks,
    column_ranks,
    mean_case_rank,
    mean_case_rank_with_interval,
    means_over_common_cases,
    sum_rank,
    sum_rank_with_interval,
)

NAN = np.nan


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
    np.testing.assert_allclose(mean_case_rank(values, [True, False]), [5 / 3, 2, 7 / 3])
    estimates = mean_case_rank_with_interval(values, [True, False], ["a", "b"])
    assert [estimate.mean for estimate in estimates] == pytest.approx([5 / 3, 2, 7 / 3])
    # Of the four draws of two patients, a quarter has the first alone: ranks 1 and 1.5; a quarter the second: 2.5.
    assert estimates[0][1:] == pytest.approx((1.25, 2.5))


@pytest.mark.usefixtures("two_patients_suffice")
def test_interval_of_the_sum_rank_by_hand() -> None:
    # Of patients a and b the first method is better on a, by more, and the second on b: drawn b alone, it wins.
    values = np.array([[[[0.9], [0.9], [0.7]]], [[[0.6], [0.6], [0.8]]]])
    first, second = sum_rank_with_interval(values, [True], ["a", "a", "b"])
    assert first == (1, 1, 2)
    assert second == (2, 1, 2)


def test_interval_of_the_sum_rank_is_that_of_every_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 200)
    values = np.random.default_rng(0).normal(size=(3, 40, 2))
    values[1, :5, 1] = NAN
    groups = np.array([f"p{i // 2}" for i in range(40)])
    patients, better = np.unique(groups), [True, False]
    draws = np.random.default_rng(3).integers(20, size=(200, 20))
    drawn = [np.concatenate([np.flatnonzero(groups == patients[i]) for i in draw]) for draw in draws]
    sums = [sum_rank(means_over_common_cases(values[:, cases]), better) for cases in drawn]
    estimates = sum_rank_with_interval(values[:, None], better, groups.tolist(), seed=3)
    expected = [sum_rank(means_over_common_cases(values), better), *np.quantile(sums, [0.025, 0.975], axis=0)]
    np.testing.assert_allclose(np.transpose(estimates), expected)


def test_interval_over_runs_too_is_that_of_every_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 200)
    rng = np.random.default_rng(0)
    values = [rng.normal(size=(runs, 10, 2)) for runs in (3, 1, 2)]
    values[2][1, 4, 1] = NAN  # undefined in one run: no common case
    better, groups = [True, False], [f"p{i}" for i in range(10)]
    patients = np.random.default_rng(3).integers(10, size=(200, 10))
    runs = [np.random.default_rng((3, 1, i)).integers(len(of), size=(200, len(of))) for i, of in enumerate(values)]
    sums = []
    for draw, cases in enumerate(patients):
        means = np.stack([of[drawn[draw]].mean(0) for of, drawn in zip(values, runs, strict=True)])
        means[:, 4, 1] = NAN
        sums.append(sum_rank(means_over_common_cases(means[:, cases]), better))
    estimates = sum_rank_with_interval(values, better, groups, seed=3)
    np.testing.assert_allclose(np.transpose(estimates)[1:], np.quantile(sums, [0.025, 0.975], axis=0))
    assert [estimate.mean for estimate in estimates] == pytest.approx(
        sum_rank(means_over_common_cases([of.mean(0) for of in values]), better)
    )


def test_one_patient_gives_no_interval() -> None:
    (first, _) = sum_rank_with_interval(np.array([[[[0.9]]], [[[0.6]]]]), [True], ["a"])
    assert first.mean == 1
    assert np.isnan(first[1:]).all()
