"""Intervals and tests over seeds, and ranks, against NumPy, SciPy, the paper and simulation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from calib_tools.report import statistics
from calib_tools.report.statistics import Estimate
from study.compare.published import PUBLISHED
from study.compare.ranks import case_ranks, means_over_common_cases, ranks_of
from study.compare.statistics import mean_with_interval, paired_difference, seeds_and_patients
from tests.calib_tools.report.made_up import patients_of

NAN = np.nan


def mean(values: np.ndarray) -> Estimate:
    return mean_with_interval(values, patients_of(values.shape[-1]))


def difference(values: np.ndarray, reference: np.ndarray, same_seeds: bool = False) -> Estimate:
    return paired_difference(values, reference, patients_of(values.shape[-1]), same_seeds)


def test_one_seed_is_over_patients_alone() -> None:
    runs = np.random.default_rng(7).normal(size=(3, 12))
    names = patients_of(12)
    assert mean(runs[:1]) == statistics.mean_with_interval(runs[0], names)
    expected = statistics.paired_difference(runs[0], runs[1:].mean(0), names)
    assert difference(runs[0], runs[1:]) == expected


def test_cases_of_a_patient_count_as_one() -> None:
    values = np.random.default_rng(4).normal(size=(3, 12))
    repeated = mean_with_interval(np.repeat(values, 2, axis=1), patients_of(24, 2))
    assert repeated[:3] == pytest.approx(mean(values)[:3])
    uneven = np.concatenate([values, values[:, :3]], axis=1)  # three patients have two cases
    found = mean_with_interval(uneven, [*patients_of(12), *patients_of(3)])
    assert found.mean == pytest.approx(uneven.mean())
    assert found.low < found.mean < found.high
    assert np.isnan(mean_with_interval(values, patients_of(12, 3)).low)  # four patients


def oracle(tables: list[np.ndarray]) -> tuple[float, float]:
    """Squared standard error and degrees of freedom, from the formula written out with loops."""
    seeds, patients = [len(t) for t in tables], tables[0].shape[1]
    spread = [np.var([row.mean() for row in t], ddof=1) for t in tables]
    of_each = [
        np.mean(tables[0][:, p]) - sum(np.mean(t[:, p]) for t in tables[1:])
        for p in range(patients)
    ]
    of_patients, noise = np.var(of_each, ddof=1), []
    for t in tables:
        total = 0.0
        for s, p in product(range(len(t)), range(patients)):
            total += (t[s, p] - t[s].mean() - t[:, p].mean() + t.mean()) ** 2
        noise.append(total / ((len(t) - 1) * (patients - 1)))
    of_seeds = sum(a / s for a, s in zip(spread, seeds, strict=True))
    se2 = (
        of_seeds
        + of_patients / patients
        - sum(e / (s * patients) for e, s in zip(noise, seeds, strict=True))
    )
    se2 = max(se2, of_patients / patients, of_seeds)
    terms = [(a / s, s - 1) for a, s in zip(spread, seeds, strict=True)] + [
        (of_patients / patients, patients - 1)
    ]
    return se2, se2**2 / sum(part**2 / df for part, df in terms)


@pytest.mark.parametrize("seeds", [(3,), (3, 3), (2, 5)])
def test_t_interval_is_the_formula(seeds: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    people = rng.normal(size=10)
    tables = [people + rng.normal(size=(s, 1)) + 0.5 * rng.normal(size=(s, 10)) for s in seeds]
    of_all = tables[0].mean() - sum(t.mean() for t in tables[1:])
    se2, df = oracle(tables)
    low, high, p_value = seeds_and_patients(of_all, tables)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, df, of_all, se2**0.5))
    assert p_value == pytest.approx(2 * stats.t.sf(abs(of_all) / se2**0.5, df))
    found = mean(tables[0]) if len(tables) == 1 else difference(*tables)
    expected = (of_all, low, high, NAN if len(tables) == 1 else p_value)
    assert found[:4] == pytest.approx(expected, nan_ok=True)


def test_seeds_are_paired_and_one_without_a_value_takes_the_mean_of_the_others() -> None:
    rng = np.random.default_rng(6)
    runs = rng.normal(size=(3, 1)) + rng.normal(size=(3, 12))
    paired = difference(runs + 0.01 * rng.normal(size=(3, 12)), runs, same_seeds=True)
    assert paired.high - paired.low < 0.1 < np.subtract(*difference(runs + 0.01, runs)[2:0:-1])
    filled = runs.copy()
    runs[0, 2], filled[0, 2] = NAN, runs[1:, 2].mean()
    assert mean(runs)[:3] == pytest.approx(mean(filled)[:3])


@pytest.mark.parametrize("effects", [(1, 0.1, 0.5), (0.3, 1, 0.5), (0.2, 1, 0)])
def test_coverage_of_the_t_interval_over_new_trainings_and_patients(
    effects: tuple[float, float, float],
) -> None:
    """Two losses that are equally good, with effects of seeds, patients, and both."""
    found = []
    for draw in range(800):
        rng, (of_seeds, of_patients, of_both) = np.random.default_rng(draw), effects
        people = of_patients * rng.normal(size=16)
        tables = [
            of_seeds * rng.normal(size=(3, 1)) + of_both * rng.normal(size=(3, 16))
            for _ in range(2)
        ]
        found.append(difference(tables[0] + people, tables[1]))
    covered = np.mean([estimate.low <= 0 <= estimate.high for estimate in found])
    assert 0.93 <= covered <= 0.99
    assert np.mean([estimate.p_value < 0.05 for estimate in found]) == pytest.approx(1 - covered)


def test_table_1_of_the_paper_ranks_nacl_first() -> None:
    names = ["ce_dice", "focal", "entropy_penalty", "label_smoothing", "svls", "mbls", "nacl"]
    datasets = ("flare", "acdc", "brats")
    means = (
        PUBLISHED.unstack("dataset")
        .loc[names, [(m, d) for d in datasets for m in PUBLISHED]]
        .to_numpy()
    )
    ranks = ranks_of(means * ([-1, 1, 1, 1] * 3))  # a high DSC is good
    # By hand, CE+DSC: FLARE .846 is 5th, 5.54 4th, .058 7th, .034 3rd; ...
    np.testing.assert_array_equal(ranks[0], [5, 4, 7, 3, 2, 4, 6, 4, 7, 2, 7, 7])
    # ... NACL shares its .112 of ECE on BraTS with LS: places 2 and 3.
    np.testing.assert_array_equal(ranks[-1], [1, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2.5, 2])
    assert ranks.sum(1)[[0, -1]].tolist() == [58, 15.5]


def test_undefined_values_rank_last_and_leave_the_means_of_all() -> None:
    # Two cases
    costs = np.array([[[0.1, 2.0], [0.3, NAN]], [[0.2, 2.0], [0.3, NAN]], [[0.4, NAN], [0.2, NAN]]])
    expected = [[[1, 1.5], [2.5, NAN]], [[2, 1.5], [2.5, NAN]], [[3, 3], [1, NAN]]]
    np.testing.assert_array_equal(case_ranks(costs), expected)
    # The second method misses the difficult case
    hd95 = [[[2.0], [6.0], [4.0]], [[2.5], [NAN], [4.5]]]
    np.testing.assert_array_equal(means_over_common_cases(hd95), [[3.0], [3.5]])
    np.testing.assert_array_equal(ranks_of([2.0, NAN, 1.0]), [2, 3, 1])
