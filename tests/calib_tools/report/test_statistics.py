"""Intervals and tests against NumPy, SciPy and simulation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from calib_components.metrics.intervals import Estimate, interval
from calib_tools.report.statistics import (
    CalibrationGap,
    correct_gaps,
    holm,
    paired_difference,
    sign_flip_p_value,
)
from tests.calib_tools.report.made_up import patients_of

NAN = np.nan


def mean(values: np.ndarray) -> Estimate:
    return interval(values, patients_of(len(values)))


def difference(values: np.ndarray, reference: np.ndarray) -> Estimate:
    return paired_difference(values, reference, patients_of(len(values)))


def gap_of(confidence: np.ndarray, accuracy: np.ndarray) -> CalibrationGap:
    return CalibrationGap(confidence, accuracy, patients_of(len(confidence)))


def test_mean_covers_what_a_normal_interval_would() -> None:
    values = np.random.default_rng(0).normal(size=400)
    found, half = mean(values), 1.96 * values.std() / 20
    assert found[:3] == pytest.approx(
        (values.mean(), values.mean() - half, values.mean() + half), abs=0.1 * half
    )
    assert mean(np.append(values, [NAN, NAN])) == found
    assert np.isnan(mean(np.array([NAN, NAN])).mean)


def test_cases_of_a_patient_count_as_one() -> None:
    values = np.random.default_rng(4).normal(size=12)
    repeated = interval(np.repeat(values, 2), patients_of(24, 2))
    assert repeated[:3] == pytest.approx(mean(values)[:3])
    assert mean(np.repeat(values, 2)).low > repeated.low
    uneven = np.append(values, values[:3])  # three patients have two cases
    found = interval(uneven, [*patients_of(12), *patients_of(3)])
    assert found.mean == pytest.approx(uneven.mean())
    assert found.low < found.mean < found.high


@pytest.mark.parametrize(("patients", "enough"), [(5, False), (6, True)])
def test_six_patients_are_needed_however_many_cases(patients: int, enough: bool) -> None:
    names = patients_of(3 * patients, 3)
    values = np.random.default_rng(0).uniform(1, 2, size=(2, 3 * patients))
    found = [interval(values[0], names), paired_difference(*values, names)]
    assert [np.isfinite(estimate.low) for estimate in found] == [enough] * 2
    assert np.isfinite(found[1].p_value) == enough


def test_difference_is_that_of_common_cases_and_pairs_cases() -> None:
    values = np.random.default_rng(1).normal(size=20)
    found = difference(np.append(values + 0.1, NAN), np.append(values, 3))
    assert found[:3] == pytest.approx((0.1, 0.1, 0.1))
    assert found.cases == 20
    assert difference(values, values)[:4] == (0, 0, 0, 1)


def test_sign_flips_are_all_choices_of_signs_or_near_them() -> None:
    rng = np.random.default_rng(1)
    values, names = rng.normal(0.5, 1, 7), ["a", "a", "b", "c", "d", "e", "f"]
    sums = np.array([values[:2].sum(), *values[2:]])
    flipped = np.abs(np.array([*product([-1, 1], repeat=6)]) @ sums)
    exact = np.mean(flipped >= abs(sums.sum()) * (1 - 1e-9))
    assert sign_flip_p_value(values, names) == pytest.approx(exact)
    assert sign_flip_p_value([*values, NAN], [*names, "g"]) == pytest.approx(exact)
    assert np.isnan(sign_flip_p_value(values[2:], names[2:]))
    values = rng.normal(0.3, 1, 16)
    exact = (np.abs(np.array([*product([-1, 1], repeat=16)]) @ values) >= abs(values.sum())).mean()
    assert sign_flip_p_value(values, patients_of(16)) == pytest.approx(exact, abs=0.02)


def test_gap_is_that_of_student_unless_calibrated_patients_look_alike() -> None:
    confidence, gaps = np.full(50, 0.6), np.random.default_rng(0).normal(0.3, 0.15, 50)
    expected = stats.ttest_1samp(gaps, 0)
    found = gap_of(confidence, confidence - gaps).estimate()
    assert found[:3] == pytest.approx((gaps.mean(), *expected.confidence_interval()), abs=2e-3)
    assert expected.pvalue <= found.p_value < 0.05
    # As 0.95 ** 30 of them are, with 5 parts each
    all_right = gap_of(np.full(6, 0.95), np.ones(6))
    assert all_right.p_value == pytest.approx(2 * 0.95**30, abs=0.02)
    assert all_right.estimate().high > 0
    assert gap_of(np.full(6, 0.99), np.zeros(6)).p_value < 0.001
    assert np.isnan(gap_of(np.array([0.99]), np.zeros(1)).estimate()[1:4]).all()


@given(gap=st.floats(-0.2, 0.2), patients=st.integers(2, 30), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_an_interval_leaves_out_0_where_its_p_value_is_small(
    gap: float, patients: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.5, 1, (3, patients))
    accuracy = (confidence - gap - rng.normal(0, 0.1, confidence.shape)).clip(0, 1)
    gaps = dict(enumerate(map(gap_of, confidence, accuracy)))
    corrected = correct_gaps(gaps)
    p_values = [corrected[number].p_value for number in gaps]
    assert p_values == holm([gap.p_value for gap in gaps.values()]).tolist()
    for found in (*(gap.estimate() for gap in gaps.values()), *corrected.values()):
        is_beside_0, p = found.low > 0 or found.high < 0, found.p_value
        # A quantile lies between two of the drawn values
        assert is_beside_0 == (p < 0.05) or abs(p - 0.05) < 1e-3


def test_further_patients_would_tell() -> None:
    """If they are like those that there are."""
    gaps = np.tile([0.05, -0.03, 0.02], 3)
    first = gap_of(np.full(9, 0.6), 0.6 - gaps)
    more = first.further_patients(0.02)
    low, high = first.estimate()[1:3]
    assert low < 0 < high
    many = np.resize(gaps, 9 + more + 6)
    low, high = gap_of(np.full(len(many), 0.6), 0.6 - many).estimate()[1:3]
    assert low > 0 or (low > -0.02 and high < 0.02)


@given(st.lists(st.floats(0, 1) | st.just(NAN), max_size=12))
def test_holm_is_the_step_down_procedure(p_values: list[float]) -> None:
    made = sorted(p for p in p_values if p == p)
    steps = [min(1, p * (len(made) - place)) for place, p in enumerate(made)]
    expected = [max(steps[: made.index(p) + made.count(p)]) if p == p else NAN for p in p_values]
    np.testing.assert_allclose(holm(p_values), expected)
