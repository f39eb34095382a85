from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import spearmanr

from calib_components.tools.compare import statistics
from calib_components.tools.report.ranks import RankedCases, mean_case_rank_with_interval, sum_rank_with_interval
from calib_components.tools.report.statistics import (
    holm,
    mean_with_interval,
    paired_difference,
    sign_flip_p_value,
    spearman_with_interval,
)

NAN = np.nan


@pytest.fixture
def two_patients_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    """For examples small enough to work out by hand."""
    monkeypatch.setattr(statistics, "FEWEST_PATIENTS", 2)


class TestMeanWithInterval:
    def test_covers_what_a_normal_interval_would(self) -> None:
        values = np.random.default_rng(0).normal(size=400)
        mean, low, high = mean_with_interval(values)
        half = 1.96 * values.std() / 20
        assert mean == pytest.approx(values.mean())
        assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)

    def test_copies_of_a_patient_add_no_certainty(self) -> None:
        values = np.random.default_rng(0).normal(size=50)
        patients = [f"p{i}" for i in range(50)]
        assert mean_with_interval(np.tile(values, 4), patients * 4) == pytest.approx(
            mean_with_interval(values, patients)
        )
        _, low, high = mean_with_interval(values, patients)
        _, low_4, high_4 = mean_with_interval(np.tile(values, 4))
        assert high_4 - low_4 == pytest.approx((high - low) / 2, rel=0.1)

    @pytest.mark.usefixtures("two_patients_suffice")
    def test_undefined_values_are_left_out(self) -> None:
        assert mean_with_interval([1, NAN, 3, NAN]) == mean_with_interval([1, 3])
        assert mean_with_interval([1, NAN, 3], ["a", "b", "b"]) == mean_with_interval([1, 3])
        assert np.isnan(mean_with_interval([NAN, NAN])).all()

    def test_one_patient_gives_no_interval(self) -> None:
        mean, *interval = mean_with_interval([0.5, 0.7], ["a", "a"])
        assert mean == pytest.approx(0.6)
        assert np.isnan(interval).all()

    @pytest.mark.usefixtures("two_patients_suffice")
    def test_of_equal_values_has_no_width(self) -> None:
        assert mean_with_interval([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5)


class TestSeveralRuns:
    @pytest.mark.usefixtures("two_patients_suffice")
    def test_value_of_a_case_is_the_mean_over_the_runs_that_have_one(self) -> None:
        assert mean_with_interval([[1, 5, NAN], [3, NAN, NAN]]).mean == (2 + 5) / 2

    def test_equal_runs_add_nothing(self) -> None:
        values = np.random.default_rng(0).normal(size=(2, 30))
        groups = [f"p{i // 2}" for i in range(30)]
        for runs in (values[:1], np.repeat(values[:1], 3, axis=0)):
            assert mean_with_interval(runs, groups) == pytest.approx(mean_with_interval(values[0], groups))
            assert paired_difference(runs, values[1], groups) == pytest.approx(
                paired_difference(values[0], values[1], groups)
            )

    @pytest.mark.usefixtures("two_patients_suffice")
    def test_runs_alone_by_hand(self) -> None:
        # All cases alike: of the 27 draws of three runs, one in 27 (3.7 %) has the first or the last alone.
        runs = np.array([[0.0], [1.0], [5.0]]) + np.zeros(4)
        assert mean_with_interval(runs) == pytest.approx((2, 0, 5))

    def test_interval_is_that_of_every_draw(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(statistics, "RESAMPLES", 200)
        rng = np.random.default_rng(0)
        values, reference = rng.normal(size=(3, 40)), rng.normal(size=(2, 40))
        values[1, :5], reference[:, 7] = NAN, NAN
        groups = np.array([f"p{i // 2}" for i in range(40)])
        patients = np.random.default_rng(0).integers(20, size=(200, 20))
        cases = [np.concatenate([np.flatnonzero(groups == np.unique(groups)[i]) for i in draw]) for draw in patients]
        runs, of_reference = (
            np.random.default_rng((0, stream)).integers(number, size=(200, number))
            for stream, number in ((1, 3), (2, 2))
        )
        first, second = (
            [statistics.mean_of_defined(of[draw]) for draw in drawn]
            for of, drawn in ((values, runs), (reference, of_reference))
        )
        means = [np.nanmean(of_cases[drawn]) for of_cases, drawn in zip(first, cases, strict=True)]
        expected = np.nanmean(statistics.mean_of_defined(values)), *np.quantile(means, [0.025, 0.975])
        assert mean_with_interval(values, groups.tolist()) == pytest.approx(expected)
        differences = [np.nanmean((a - b)[drawn]) for a, b, drawn in zip(first, second, cases, strict=True)]
        estimate = paired_difference(values, reference, groups.tolist())
        assert estimate[1:3] == pytest.approx(tuple(np.quantile(differences, [0.025, 0.975])))
        assert estimate.cases == 39

    def test_same_networks_are_drawn_together(self) -> None:
        runs = np.random.default_rng(0).normal(size=(3, 12))
        assert paired_difference(runs + 1, runs, same_runs=True) == pytest.approx((1, 1, 1, 2 / 2**12, 12))
        apart = paired_difference(runs + 1, runs)
        assert apart.low < 1 < apart.high

    def test_covers_what_a_normal_interval_would(self) -> None:
        # Effects of many runs and of many patients add up: the variance of the mean is the sum of both.
        rng = np.random.default_rng(0)
        of_runs, of_patients = rng.normal(size=(50, 1)), 2 * rng.normal(size=200)
        mean, low, high = mean_with_interval(of_runs + of_patients)
        half = 1.96 * np.sqrt(of_runs.var() / 50 + of_patients.var() / 200)
        assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)


class TestPairedDifference:
    @pytest.mark.usefixtures("two_patients_suffice")
    def test_by_hand(self) -> None:
        # Differences 1, 2, 3, -4, 5: the negative ranks sum to 4, and 7 of 32 sign patterns give a sum of at most 4.
        difference = paired_difference([2, 4, 6, 1, 10], [1, 2, 3, 5, 5])
        assert difference.mean == pytest.approx(7 / 5)
        assert difference.low < 0 < difference.high
        assert difference.p_value == pytest.approx(2 * 7 / 32)
        assert difference.cases == 5

    @pytest.mark.usefixtures("two_patients_suffice")
    def test_leaves_out_cases_where_either_is_undefined(self) -> None:
        difference = paired_difference([2, NAN, 3, 9], [1, 5, NAN, 8])
        assert difference == (1, 1, 1, 0.5, 2)

    @pytest.mark.usefixtures("two_patients_suffice")
    def test_tests_the_means_of_patients(self) -> None:
        # Means of the patients: 1, 2, 3. All of one sign: p = 2 / 2^3.
        difference = paired_difference([0, 2, 2, 2, 3, 3], np.zeros(6), ["a", "a", "b", "b", "c", "c"])
        assert difference.mean == 2
        assert difference.p_value == pytest.approx(0.25)
        assert difference.cases == 6

    @pytest.mark.usefixtures("two_patients_suffice")
    def test_nothing_differs(self) -> None:
        assert paired_difference([1, 2, 3], [1, 2, 3]) == (0, 0, 0, 1, 3)

    def test_nothing_to_compare(self) -> None:
        difference = paired_difference([NAN, 1], [1, NAN])
        assert np.isnan(difference[:4]).all()
        assert difference.cases == 0


class TestSignFlip:
    def test_all_choices_of_signs(self) -> None:
        """Every choice once in place of random ones; two values of six patients, two cases of the first."""
        rng = np.random.default_rng(1)
        values, groups = rng.normal(0, 1, (7, 2)), ["a", "a", "b", "c", "d", "e", "f"]
        sums = np.concatenate([values[:2].sum(0, keepdims=True), values[2:]])
        sizes = [np.abs((np.array(signs)[:, None] * sums).sum(0)).sum() for signs in product([-1, 1], repeat=6)]
        exact = np.mean(np.array(sizes) >= np.abs(sums.sum(0)).sum() * (1 - 1e-9))
        assert 0.1 < exact < 0.9
        assert sign_flip_p_value(values, groups) == pytest.approx(exact, rel=1e-12)

    def test_random_choices_are_near_all_of_them(self) -> None:
        """Of 16 patients and 15 values, as in the results that are kept."""
        values = np.random.default_rng(1).normal(0.1, 1, (16, 15))
        signs = np.array(list(product([-1.0, 1.0], repeat=16)))
        exact = (np.abs(signs @ values).sum(1) >= np.abs(values.sum(0)).sum() * (1 - 1e-9)).mean()
        assert 0.1 < exact < 0.9
        assert sign_flip_p_value(values) == pytest.approx(exact, abs=0.02)

    def test_one_side_is_two_of_all_choices(self) -> None:
        assert sign_flip_p_value(np.ones((8, 1)), list("abcdefgh")) == pytest.approx(2 / 2**8, rel=1e-12)

    def test_undefined_cases_and_few_patients(self) -> None:
        values = np.array([[1.0, 1.0]] * 6 + [[NAN, 1.0]])
        assert sign_flip_p_value(values, list("abcdefg")) == sign_flip_p_value(values[:6], list("abcdef"))
        assert np.isnan(sign_flip_p_value(values, list("abcdeeg")))
        assert np.isnan(sign_flip_p_value(values[6:], ["a"]))

    def test_false_alarms_with_dependent_voxels_and_patients_of_any_size(self) -> None:
        """Calibrated patients: probabilities of one number of blocks each, whose voxels all have the same label."""
        rng = np.random.default_rng(0)
        alarms = 0
        for _ in range(200):
            values = []
            for _ in range(10):
                blocks = rng.integers(2, 50)
                size, p = rng.lognormal(0, 1.5, blocks), rng.uniform(0.5, 1, blocks)
                gap = size * (p - (rng.random(blocks) < p)) / size.sum()
                values.append(np.bincount((p * 15).astype(int), gap, 15))
            alarms += sign_flip_p_value(np.array(values), [str(i) for i in range(10)]) < 0.05
        assert alarms <= 18  # 10 expected


class TestHolm:
    def test_by_hand(self) -> None:
        np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])

    def test_is_at_most_1_and_skips_tests_that_were_not_made(self) -> None:
        np.testing.assert_allclose(holm([0.6, NAN, 0.04, 0.7]), [1, NAN, 0.12, 1])
        assert holm([]).shape == (0,)


class TestFewPatients:
    """Five patients have no interval and no test, however many cases they have; six have."""

    @pytest.mark.parametrize(("patients", "enough"), [(5, False), (6, True)])
    def test_six_patients_are_needed(self, patients: int, enough: bool) -> None:
        groups = [f"p{i // 3}" for i in range(3 * patients)]
        values = np.random.default_rng(0).uniform(size=(2, 3 * patients, 1))
        difference = paired_difference(1 + values[0, :, 0], values[1, :, 0], groups)
        if enough:
            assert difference.p_value == pytest.approx(2 / 2**6)
        for number in (
            difference.low,
            difference.p_value,
            mean_with_interval(values[0, :, 0], groups).high,
            sum_rank_with_interval([RankedCases(values[:, None], groups)], [True])[0].low,
            mean_case_rank_with_interval(values, [True], groups)[1].low,
        ):
            assert np.isnan(number) != enough

    def test_patients_without_a_value_do_not_count(self) -> None:
        values = [0.1, 0.2, 0.3, 0.4, 0.5, NAN]
        assert np.isnan(mean_with_interval(values)[1:]).all()
        assert np.isnan(paired_difference(values, np.zeros(6)).p_value)
        assert paired_difference(values, np.zeros(6)).mean == pytest.approx(0.3)


class TestSpearman:
    def test_equals_scipy_with_ties_and_undefined_values(self) -> None:
        rng = np.random.default_rng(0)
        values, others = rng.integers(5, size=30).astype(float), rng.normal(size=30)
        values[3], others[7] = NAN, NAN
        expected = spearmanr(values, others, nan_policy="omit").statistic
        assert spearman_with_interval(values, others).mean == pytest.approx(expected)

    def test_resamples_whole_groups(self) -> None:
        """The same resamples with scipy: cases of a drawn patient are repeated."""
        rng = np.random.default_rng(1)
        values, noise = rng.normal(size=(2, 20))
        others, groups = values + noise, [f"p{i // 2}" for i in range(20)]
        drawn = np.random.default_rng(0).integers(10, size=(10_000, 10))[:2000]
        cases = (2 * drawn[..., None] + [0, 1]).reshape(2000, 20)
        resampled = [spearmanr(values[row], others[row]).statistic for row in cases]
        estimate = spearman_with_interval(values, others, groups)
        np.testing.assert_allclose(estimate[1:], np.quantile(resampled, [0.025, 0.975]), atol=0.03)

    def test_few_groups_have_no_interval_and_equal_values_no_correlation(self) -> None:
        few = spearman_with_interval([1, 2, 3, 4], [1, 2, 3, 4], ["a", "a", "b", "b"])
        assert few.mean == pytest.approx(1)
        assert np.isnan(few[1:]).all()
        assert np.isnan(spearman_with_interval([1] * 8, range(8))).all()
        assert np.isnan(spearman_with_interval([NAN] * 8, range(8))).all()
