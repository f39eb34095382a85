"""Intervals, tests and ranks against numpy, scipy, the paper and simulation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from calib_components.tools.report.statistics import (
    Estimate,
    bins_p_value,
    calibration_gap,
    holm,
    mean_with_interval,
    paired_difference,
    seeds_and_patients,
    sign_flip_p_value,
)
from study.compare.published import PUBLISHED
from study.compare.ranks import case_ranks, means_over_common_cases, ranks_of

NAN = np.nan


def patients_of(cases: int, each: int = 1) -> list[str]:
    return [f"p{i // each:02d}" for i in range(cases)]


def mean(values: np.ndarray) -> Estimate:
    return mean_with_interval(values, patients_of(values.shape[-1]))


def difference(values: np.ndarray, reference: np.ndarray, same_seeds: bool = False) -> Estimate:
    return paired_difference(values, reference, patients_of(values.shape[-1]), same_seeds)


def test_mean_covers_what_a_normal_interval_would() -> None:
    values = np.random.default_rng(0).normal(size=400)
    found, half = mean(values), 1.96 * values.std() / 20
    assert found[:3] == pytest.approx(
        (values.mean(), values.mean() - half, values.mean() + half), abs=0.1 * half
    )
    assert mean(np.append(values, [NAN, NAN])) == found
    assert np.isnan(mean(np.array([NAN, NAN])).mean)


@pytest.mark.parametrize("runs", [1, 3])
def test_cases_of_a_patient_count_as_one(runs: int) -> None:
    values = np.random.default_rng(4).normal(size=(runs, 12))
    repeated = mean_with_interval(np.repeat(values, 2, axis=1), patients_of(24, 2))
    assert repeated[:3] == pytest.approx(mean(values)[:3])
    assert mean(np.repeat(values, 2, axis=1)).low > repeated.low
    uneven = np.concatenate([values, values[:, :3]], axis=1)  # three patients have two cases
    found = mean_with_interval(uneven, [*patients_of(12), *patients_of(3)])
    assert found.mean == pytest.approx(uneven.mean())
    assert found.low < found.mean < found.high


@pytest.mark.parametrize(("patients", "enough"), [(5, False), (6, True)])
def test_six_patients_are_needed_however_many_cases(patients: int, enough: bool) -> None:
    names, values = (
        patients_of(3 * patients, 3),
        np.random.default_rng(0).uniform(1, 2, size=(2, 3 * patients)),
    )
    found = [
        mean_with_interval(values[0], names),
        mean_with_interval(values, names),
        paired_difference(values[0] + 1, values[1], names),
    ]
    assert [estimate.has_interval for estimate in found] == [enough] * 3
    assert np.isfinite(found[2].p_value) == enough


def test_difference_is_that_of_common_cases_and_pairs_cases() -> None:
    values = np.random.default_rng(1).normal(size=20)
    found = difference(np.append(values + 0.1, NAN), np.append(values, 3))
    assert found[:3] == pytest.approx((0.1, 0.1, 0.1))
    assert found.cases == 20
    assert difference(values, values)[:4] == (0, 0, 0, 1)
    runs = np.random.default_rng(7).normal(size=(3, 12))
    # One seed: over patients alone
    assert difference(runs[0], runs[1:]) == difference(runs[0], runs[1:].mean(0))


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


def test_seeds_are_paired_for_the_same_networks_and_one_without_a_value_takes_the_mean_of_the_others() -> (
    None
):
    rng = np.random.default_rng(6)
    runs = rng.normal(size=(3, 1)) + rng.normal(size=(3, 12))
    paired = difference(runs + 0.01 * rng.normal(size=(3, 12)), runs, same_seeds=True)
    assert paired.high - paired.low < 0.1 < np.subtract(*difference(runs + 0.01, runs)[2:0:-1])
    filled = runs.copy()
    runs[0, 2], filled[0, 2] = NAN, runs[1:, 2].mean()
    assert mean(runs)[:3] == pytest.approx(mean(filled)[:3])


@pytest.mark.parametrize("effects", [(1, 0.1, 0.5), (0.3, 1, 0.5), (0.2, 1, 0), (0.5, 2, 1)])
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


def test_sign_flips_are_all_choices_of_signs_or_near_them() -> None:
    rng = np.random.default_rng(1)
    values, names = rng.normal(size=(7, 2)), ["a", "a", "b", "c", "d", "e", "f"]
    sums = np.concatenate([values[:2].sum(0, keepdims=True), values[2:]])
    sizes = [np.abs(np.array(signs) @ sums).sum() for signs in product([-1, 1], repeat=6)]
    exact = np.mean(np.array(sizes) >= np.abs(sums.sum(0)).sum() * (1 - 1e-9))
    assert sign_flip_p_value(values, names) == pytest.approx(exact)
    assert np.isnan(sign_flip_p_value(values[2:], names[2:]))
    undefined = np.concatenate([values, [[NAN, 1]]])
    assert sign_flip_p_value(undefined, [*names, "g"]) == pytest.approx(exact)
    values = rng.normal(0.1, 1, (16, 15))
    signs = np.array(list(product([-1.0, 1.0], repeat=16)))
    exact = (np.abs(signs @ values).sum(1) >= np.abs(values.sum(0)).sum()).mean()
    assert sign_flip_p_value(values, patients_of(16)) == pytest.approx(exact, abs=0.02)


def test_gap_is_that_of_student_unless_calibrated_patients_look_alike() -> None:
    confidence, gaps = np.full(8, 0.6), np.random.default_rng(0).normal(0.3, 0.15, 8)
    expected, found = stats.ttest_1samp(gaps, 0), calibration_gap(confidence, confidence - gaps)
    assert found[:3] == pytest.approx((gaps.mean(), *expected.confidence_interval()))
    assert expected.pvalue <= found.p_value < 0.05
    # As 0.95 ** 30 of them are, with 5 parts each
    all_right = calibration_gap(np.full(6, 0.95), np.ones(6))
    assert all_right.p_value == pytest.approx(2 * 0.95**30, abs=0.02)
    assert all_right.high < 0  # so that "no miscalibration" is not shown either
    assert calibration_gap([0.99] * 6, [0] * 6).p_value < 0.001
    assert np.isnan(calibration_gap([0.99], [0])[1:4]).all()


def test_bins_that_are_wrong_in_opposite_directions_do_not_cancel() -> None:
    wrong = np.array([[0.5, 0.5], [0.4, 0.3], [0.25, 0.45]])[:, None].repeat(8, 1)
    assert calibration_gap(*wrong[1:].sum(2)).p_value == 1
    assert bins_p_value(wrong) == 2 / 2**8


@given(st.lists(st.floats(0, 1) | st.just(NAN), max_size=12))
def test_holm_is_the_step_down_procedure(p_values: list[float]) -> None:
    made = sorted(p for p in p_values if p == p)
    steps = [min(1, p * (len(made) - place)) for place, p in enumerate(made)]
    expected = [max(steps[: made.index(p) + made.count(p)]) if p == p else NAN for p in p_values]
    np.testing.assert_allclose(holm(p_values), expected)


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
