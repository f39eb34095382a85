"""Ranks of the means and on single cases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap

from calib_components.tools.report.published import PUBLISHED
from calib_components.tools.report.ranks import (
    RankedCases,
    case_ranks,
    column_ranks,
    mean_case_ranks,
    means_over_common_cases,
    sum_rank,
    sum_ranks,
)

NAN = np.nan
PEOPLE = [f"p{i:02d}" for i in range(12)]
TABLE1 = ("ce_dice", "focal", "entropy_penalty", "label_smoothing", "svls", "mbls", "nacl")


def test_table_1_of_the_paper_ranks_nacl_first() -> None:
    means = [[value for dataset in PUBLISHED.values() for value in dataset[name]] for name in TABLE1]
    higher_is_better = [True, False, False, False] * 3
    ranks = column_ranks(means, higher_is_better)
    # By hand, CE+DSC: FLARE .846 is 5th, 5.54 4th, .058 7th, .034 3rd; ...
    np.testing.assert_array_equal(ranks[0], [5, 4, 7, 3, 2, 4, 6, 4, 7, 2, 7, 7])
    # ... NACL shares its .112 of ECE on BraTS with LS: places 2 and 3.
    np.testing.assert_array_equal(ranks[-1], [1, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2.5, 2])
    totals = dict(zip(TABLE1, sum_rank(means, higher_is_better).tolist(), strict=True))
    assert (totals["ce_dice"], totals["nacl"]) == (58, 15.5)
    assert min(totals, key=totals.__getitem__) == "nacl"
    assert sum(totals.values()) == 12 * 28  # 1 + ... + 7 in each column


def test_ties_share_the_mean_rank_and_undefined_means_rank_last() -> None:
    ranks = column_ranks([[0.9, 2.0], [0.9, NAN], [0.8, 1.0]], [True, False])
    np.testing.assert_array_equal(ranks, [[1.5, 2], [1.5, 3], [3, 1]])


def test_means_over_common_cases_do_not_reward_a_miss() -> None:
    hd95 = [[[2.0], [6.0], [4.0]], [[2.5], [NAN], [4.5]]]  # the second method misses the difficult case
    np.testing.assert_array_equal(means_over_common_cases(hd95), [[3.0], [3.5]])
    assert np.isnan(means_over_common_cases([[[NAN], [1.0]], [[1.0], [NAN]]])).all()


def test_case_ranks_by_hand() -> None:
    values = [[[0.9, 2.0], [0.7, NAN]], [[0.8, 2.0], [0.7, NAN]], [[0.6, NAN], [0.8, NAN]]]  # two cases, DSC and HD95
    ranks = case_ranks(values, [True, False])
    np.testing.assert_array_equal(ranks[0], [[1, 1.5], [2.5, NAN]])
    np.testing.assert_array_equal(ranks[1], [[2, 1.5], [2.5, NAN]])
    np.testing.assert_array_equal(ranks[2], [[3, 3], [1, NAN]])  # missed it: last
    found = mean_case_ranks([RankedCases(np.array(values), ["a", "b"])], [True, False])
    assert [estimate.mean for estimate in found] == pytest.approx([5 / 3, 2, 7 / 3])
    assert not found[0].has_interval


def test_interval_of_the_sum_rank_is_that_of_every_draw() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 24, 2))
    values[1, :3, 1] = NAN
    names, better = np.repeat(PEOPLE, 2), [True, False]
    rows = [np.flatnonzero(names == name) for name in PEOPLE]

    def statistic(drawn: np.ndarray) -> np.ndarray:
        return sum_rank(means_over_common_cases(values[:, np.concatenate([rows[i] for i in drawn])]), better)

    options = {"n_resamples": 999, "method": "percentile", "vectorized": False, "rng": np.random.default_rng(1)}
    interval = bootstrap((np.arange(12),), statistic, **options).confidence_interval
    found = np.array(sum_ranks([RankedCases(values, names.tolist())], better))
    np.testing.assert_allclose(found[:, 0], statistic(np.arange(12)))
    np.testing.assert_allclose(found[:, 1:3].T, [interval.low, interval.high], atol=0.51)


def test_data_sets_of_the_same_patients_are_resampled_together() -> None:
    rng, better = np.random.default_rng(0), [True, False, False]
    cases = RankedCases(rng.normal(size=(3, 12, 3)), PEOPLE)
    one, twice, apart = (
        np.array(sum_ranks(datasets, better))
        for datasets in ([cases], [cases, cases], [cases, cases._replace(population=1)])
    )
    np.testing.assert_allclose(twice[:, :3], 2 * one[:, :3])
    assert (apart[:, 2] - apart[:, 1]).sum() < 2 * (one[:, 2] - one[:, 1]).sum()


def test_few_patients_in_a_data_set_or_a_metric_leave_no_interval() -> None:
    values = np.random.default_rng(0).uniform(size=(2, 12, 2))
    many, few = RankedCases(values, PEOPLE), RankedCases(values[:, :5], PEOPLE[:5], population=1)
    assert sum_ranks([many], [True, False])[0].has_interval
    assert not sum_ranks([many, few], [True, False])[0].has_interval
    values[0, :7, 1] = NAN
    assert not sum_ranks([many], [True, False])[0].has_interval
