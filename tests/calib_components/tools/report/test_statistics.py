"""Intervals and tests against numpy, scipy and simulation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from calib_components.tools.report.statistics import (
    Estimate,
    holm,
    mean_with_interval,
    paired_difference,
    ratio_with_interval,
    seeds_and_patients,
    sign_flip_p_value,
    spearman_with_interval,
)

NAN = np.nan


def patients_of(cases: int, each: int = 2) -> list[str]:
    return [f"p{i // each}" for i in range(cases)]


def test_mean_covers_what_a_normal_interval_would() -> None:
    values = np.random.default_rng(0).normal(size=400)
    found, half = mean_with_interval(values), 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert found[1:3] == pytest.approx((found.mean - half, found.mean + half), abs=0.1 * half)


def test_copies_of_a_patient_add_no_certainty() -> None:
    values = np.random.default_rng(0).normal(size=50)
    names = patients_of(50, 1)
    assert mean_with_interval(np.tile(values, 4), names * 4)[:3] == pytest.approx(mean_with_interval(values, names)[:3])
    widths = [found.high - found.low for found in map(mean_with_interval, (values, np.tile(values, 4)))]
    assert widths[1] == pytest.approx(widths[0] / 2, rel=0.1)


def test_undefined_values_are_left_out() -> None:
    values = np.arange(8.0)
    with_nan = np.append(values, [NAN, NAN])
    assert mean_with_interval(with_nan)[:3] == mean_with_interval(values)[:3]
    assert mean_with_interval(with_nan).cases == 8
    assert np.isnan(mean_with_interval([NAN, NAN]).mean)


@pytest.mark.parametrize(("patients", "enough"), [(5, False), (6, True)])
def test_six_patients_are_needed_however_many_cases(patients: int, enough: bool) -> None:
    names, values = patients_of(3 * patients, 3), np.random.default_rng(0).uniform(1, 2, size=(2, 3 * patients))
    found = [
        mean_with_interval(values[0], names),
        mean_with_interval(values, names),
        paired_difference(values[0] + 1, values[1], names),
        spearman_with_interval(*values, names),
        *ratio_with_interval(values.T, values.T + 1, names),
    ]
    assert [estimate.has_interval for estimate in found] == [enough] * 6
    p_value = paired_difference(values[0] + 1, values[1], names).p_value
    assert p_value == pytest.approx(2 / 2**6) if enough else np.isnan(p_value)


def test_difference_is_that_of_common_cases_and_pairs_cases() -> None:
    values = np.random.default_rng(1).normal(size=20)
    found = paired_difference(np.append(values + 0.1, NAN), np.append(values, 3))
    assert found[:3] == pytest.approx((0.1, 0.1, 0.1))
    assert found.cases == 20
    assert paired_difference(values, values)[:4] == (0, 0, 0, 1)


def test_ratio_of_sums() -> None:
    above, below = np.random.default_rng(2).uniform(size=(2, 30, 2))
    above[:, 1] = below[:, 1] = 0
    first, second = ratio_with_interval(above, below, patients_of(30))
    assert first.mean == pytest.approx(above[:, 0].sum() / below[:, 0].sum())
    assert first.low < first.mean < first.high
    assert np.isnan(second.mean)
    assert not second.has_interval


def oracle(tables: list[np.ndarray]) -> tuple[float, float]:
    """Squared standard error and degrees of freedom, from the formula written out with loops."""
    seeds, patients = [len(t) for t in tables], tables[0].shape[1]
    spread = [np.var([row.mean() for row in t], ddof=1) for t in tables]
    difference = [np.mean(tables[0][:, p]) - sum(np.mean(t[:, p]) for t in tables[1:]) for p in range(patients)]
    of_patients, noise = np.var(difference, ddof=1), []
    for t in tables:
        total = 0.0
        for s, p in product(range(len(t)), range(patients)):
            total += (t[s, p] - t[s].mean() - t[:, p].mean() + t.mean()) ** 2
        noise.append(total / ((len(t) - 1) * (patients - 1)))
    of_seeds = sum(a / s for a, s in zip(spread, seeds, strict=True))
    se2 = of_seeds + of_patients / patients - sum(e / (s * patients) for e, s in zip(noise, seeds, strict=True))
    se2 = max(se2, of_patients / patients, of_seeds)
    terms = [(a / s, s - 1) for a, s in zip(spread, seeds, strict=True)] + [(of_patients / patients, patients - 1)]
    return se2, se2**2 / sum(part**2 / df for part, df in terms)


@pytest.mark.parametrize("seeds", [(3,), (3, 3), (2, 5)])
def test_t_interval_is_the_formula(seeds: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    people = rng.normal(size=10)
    tables = [people + rng.normal(size=(s, 1)) + 0.5 * rng.normal(size=(s, 10)) for s in seeds]
    mean = tables[0].mean() - sum(t.mean() for t in tables[1:])
    se2, df = oracle(tables)
    low, high, p_value = seeds_and_patients(mean, tables)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, df, mean, se2**0.5))
    assert p_value == pytest.approx(2 * stats.t.sf(abs(mean) / se2**0.5, df))
    found = mean_with_interval(tables[0]) if len(tables) == 1 else paired_difference(*tables)
    assert found[:3] == pytest.approx((mean, low, high))
    assert np.isnan(found.p_value) if len(tables) == 1 else found.p_value == pytest.approx(p_value)


def test_cases_of_a_patient_count_as_one_in_the_t_interval() -> None:
    runs = np.random.default_rng(4).normal(size=(3, 8))
    assert mean_with_interval(np.repeat(runs, 2, axis=1), patients_of(16))[:3] == pytest.approx(
        mean_with_interval(runs)[:3]
    )
    uneven = np.concatenate([runs, runs[:, :3]], axis=1)  # three patients have two cases
    found = mean_with_interval(uneven, [*patients_of(8, 1), *patients_of(3, 1)])
    assert found.mean == pytest.approx(uneven.mean())
    assert found.low < found.mean < found.high


def test_seed_without_a_value_takes_the_mean_of_the_others() -> None:
    runs = np.random.default_rng(5).normal(size=(3, 10))
    runs[0, 2] = NAN
    filled = runs.copy()
    filled[0, 2] = runs[1:, 2].mean()
    assert mean_with_interval(runs)[:3] == pytest.approx(mean_with_interval(filled)[:3])


def test_same_networks_are_paired_by_seed() -> None:
    rng = np.random.default_rng(6)
    runs = rng.normal(size=(3, 1)) + rng.normal(size=(3, 12))
    paired = paired_difference(runs + 0.01 * rng.normal(size=(3, 12)), runs, same_seeds=True)
    assert paired.high - paired.low < 0.1 < np.subtract(*paired_difference(runs + 0.01, runs)[2:0:-1])


def test_one_seed_on_one_side_is_over_patients_alone() -> None:
    runs = np.random.default_rng(7).normal(size=(3, 12))
    assert paired_difference(runs[0], runs[1:]) == paired_difference(runs[0], runs[1:].mean(0))


def simulated(draw: int, effects: tuple[float, float, float]) -> Estimate:
    """The difference of two losses that are equally good: effects of seeds, patients, and both."""
    rng = np.random.default_rng(draw)
    of_seeds, of_patients, of_both = effects
    difference_of_patients = of_patients * rng.normal(size=16)
    tables = [of_seeds * rng.normal(size=(3, 1)) + of_both * rng.normal(size=(3, 16)) for _ in range(2)]
    return paired_difference(tables[0] + difference_of_patients, tables[1])


@pytest.mark.parametrize("effects", [(1, 0.1, 0.5), (0.3, 1, 0.5), (0.2, 1, 0), (0.5, 2, 1)])
def test_coverage_of_the_t_interval_over_new_trainings_and_patients(effects: tuple[float, float, float]) -> None:
    found = [simulated(draw, effects) for draw in range(800)]
    covered = np.mean([estimate.low <= 0 <= estimate.high for estimate in found])
    assert 0.93 <= covered <= 0.99
    assert np.mean([estimate.p_value < 0.05 for estimate in found]) == pytest.approx(1 - covered)


def test_sign_flips_are_all_choices_of_signs() -> None:
    rng = np.random.default_rng(1)
    values, names = rng.normal(size=(7, 2)), ["a", "a", "b", "c", "d", "e", "f"]
    sums = np.concatenate([values[:2].sum(0, keepdims=True), values[2:]])
    sizes = [np.abs(np.array(signs) @ sums).sum() for signs in product([-1, 1], repeat=6)]
    exact = np.mean(np.array(sizes) >= np.abs(sums.sum(0)).sum() * (1 - 1e-9))
    assert sign_flip_p_value(values, names) == pytest.approx(exact)


def test_random_sign_flips_are_near_all_of_them() -> None:
    values = np.random.default_rng(1).normal(0.1, 1, (16, 15))
    signs = np.array(list(product([-1.0, 1.0], repeat=16)))
    exact = (np.abs(signs @ values).sum(1) >= np.abs(values.sum(0)).sum()).mean()
    assert sign_flip_p_value(values) == pytest.approx(exact, abs=0.02)


def test_sign_flips_leave_out_undefined_cases() -> None:
    values = np.array([[1.0, 1.0]] * 6 + [[NAN, 1.0]])
    assert sign_flip_p_value(values) == sign_flip_p_value(values[:6]) == pytest.approx(2 / 2**6)
    assert np.isnan(sign_flip_p_value(values[1:]))


def test_spearman_is_that_of_scipy_and_resamples_patients() -> None:
    rng = np.random.default_rng(0)
    values, others = rng.integers(5, size=30).astype(float), rng.normal(size=30)
    values[3], others[7] = NAN, NAN
    expected = stats.spearmanr(values, others, nan_policy="omit").statistic
    assert spearman_with_interval(values, others).mean == pytest.approx(expected)
    base, noise = rng.normal(size=(2, 20))
    drawn = 2 * rng.integers(10, size=(2000, 10))[..., None] + [0, 1]
    resampled = [stats.spearmanr(base[i.ravel()], (base + noise)[i.ravel()]).statistic for i in drawn]
    found = spearman_with_interval(base, base + noise, patients_of(20))
    np.testing.assert_allclose(found[1:3], np.quantile(resampled, [0.025, 0.975]), atol=0.06)
    assert np.isnan(spearman_with_interval([1] * 8, range(8)).mean)


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, NAN, 0.04, 0.7]), [1, NAN, 0.12, 1])
    assert holm([]).shape == (0,)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_p_values_and_bonferroni(p_values: list[float]) -> None:
    adjusted, given_p = holm(p_values), np.array(p_values)
    assert (adjusted >= given_p).all()
    assert (adjusted <= np.minimum(len(p_values) * given_p, 1) + 1e-12).all()
    order = np.argsort(p_values)
    assert (np.diff(adjusted[order]) >= 0).all()
