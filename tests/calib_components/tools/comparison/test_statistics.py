from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import spearmanr

from calib_components.tools.comparison import statistics
from calib_components.tools.comparison.statistics import (
    case_ranks,
    column_ranks,
    holm,
    mean_case_rank,
    mean_case_rank_with_interval,
    mean_with_interval,
    means_over_common_cases,
    paired_difference,
    sign_flip_p_value,
    spearman_with_interval,
    sum_rank,
    sum_rank_with_interval,
)

NAN = np.nan


@pytest.fixture
def two_patients_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    """For examples small enough to work out by hand."""
    monkeypatch.setattr(statistics, "FEWEST_PATIENTS", 2)


class TestRanks:
    def test_ties_share_the_mean_rank_and_undefined_means_rank_last(self) -> None:
        ranks = column_ranks([[0.9, 2.0], [0.9, NAN], [0.8, 1.0]], [True, False])
        np.testing.assert_array_equal(ranks, [[1.5, 2], [1.5, 3], [3, 1]])

    def test_means_over_common_cases_do_not_reward_a_miss(self) -> None:
        hd95 = [[[2.0], [6.0], [4.0]], [[2.5], [NAN], [4.5]]]  # the second method misses the difficult case
        np.testing.assert_array_equal(means_over_common_cases(hd95), [[3.0], [3.5]])
        assert np.isnan(means_over_common_cases([[[NAN], [1.0]], [[1.0], [NAN]]])).all()

    @pytest.mark.usefixtures("two_patients_suffice")
    def test_mean_case_rank_by_hand(self) -> None:
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
    def test_interval_of_the_sum_rank_by_hand(self) -> None:
        # Of patients a and b the first method is better on a, by more, and the second on b: drawn b alone, it wins.
        values = [[[0.9], [0.9], [0.7]], [[0.6], [0.6], [0.8]]]
        first, second = sum_rank_with_interval(values, [True], ["a", "a", "b"])
        assert first == (1, 1, 2)
        assert second == (2, 1, 2)

    def test_interval_of_the_sum_rank_is_that_of_every_draw(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(statistics, "RESAMPLES", 200)
        values = np.random.default_rng(0).normal(size=(3, 40, 2))
        values[1, :5, 1] = NAN
        groups = np.array([f"p{i // 2}" for i in range(40)])
        patients, better = np.unique(groups), [True, False]
        draws = np.random.default_rng(3).integers(20, size=(200, 20))
        drawn = [np.concatenate([np.flatnonzero(groups == patients[i]) for i in draw]) for draw in draws]
        sums = [sum_rank(means_over_common_cases(values[:, cases]), better) for cases in drawn]
        estimates = sum_rank_with_interval(values, better, groups.tolist(), seed=3)
        expected = [sum_rank(means_over_common_cases(values), better), *np.quantile(sums, [0.025, 0.975], axis=0)]
        np.testing.assert_allclose(np.transpose(estimates), expected)

    def test_one_patient_gives_no_interval(self) -> None:
        (first, _) = sum_rank_with_interval([[[0.9]], [[0.6]]], [True], ["a"])
        assert first.mean == 1
        assert np.isnan(first[1:]).all()


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
        assert sign_flip_p_value(values, groups) == pytest.approx(exact, abs=0.02)

    def test_one_side_is_two_of_all_choices(self) -> None:
        assert sign_flip_p_value(np.ones((8, 1)), list("abcdefgh")) == pytest.approx(2 / 2**8, abs=0.003)

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
            sum_rank_with_interval(values, [True], groups)[0].low,
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
