"""The test of a folder: against scipy, its level, and what it sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from calib_components.quality import Reference, find_shift
from calib_components.quality.shift import holm
from tests.calib_components.quality.made_up import NO_REFERENCE, reference


def names_of(patients: int, scans: int) -> list[str]:
    return [f"p{number}" for number in np.repeat(np.arange(patients), scans)]


def test_patients_are_compared_by_their_means_and_corrected() -> None:
    known = reference(12, scans=2)
    rng = np.random.default_rng(1)
    expected = {"a": rng.uniform(0.5, 0.8, 10), "b": rng.uniform(0.6, 0.99, 10)}
    expected["b"][:2] = np.nan  # a patient without this structure
    found = find_shift(known, names_of(5, 2), expected, expected["a"])
    there = known.values[..., 1].reshape(12, 2, 2).mean(1)
    here = {name: values.reshape(5, 2).mean(1) for name, values in expected.items()}
    raw = [
        stats.mannwhitneyu(x, y, alternative="less", method="exact").pvalue
        for x, y in (
            (here["a"], there[:, 0]),
            (here["b"][1:], there[:, 1]),
            (here["a"], there.mean(1)),
        )
    ]
    assert list(found) == ["a", "b", "mean over structures"]
    np.testing.assert_allclose([*found.values()], holm(raw))
    assert found["a"] < 0.05 < found["b"]


def test_without_scans_to_compare_with_nothing_is_tested() -> None:
    expected = {"a": [0.1], "b": [0.1]}
    assert find_shift(NO_REFERENCE, ["p"], expected, [0.1]) == {}


def test_one_structure_is_one_test() -> None:
    known = Reference(["a"], reference(9).values[:, :1])
    assert list(find_shift(known, ["p"], {"a": [0.1]}, [0.1])) == ["a"]


@pytest.mark.parametrize(("here", "there"), [(1, 1), (1, 2), (2, 1), (4, 1), (1, 4), (4, 2)])
def test_it_rarely_fires_where_nothing_differs(here: int, there: int) -> None:
    """Patients with one, two and four scans on either side, whose quality is skewed."""
    rng = np.random.default_rng(here + 10 * there)

    def draw(patients: int, scans: int) -> Any:
        of_patient = rng.beta(20, 3, (patients, 1, 2))
        return (0.7 * of_patient + 0.3 * rng.beta(20, 3, (patients, scans, 2))).reshape(-1, 2)

    fired = []
    for _ in range(400):
        values = draw(16, there)
        scans = np.stack([values, values, values, values], -1)
        known = Reference.from_scans(["a", "b"], names_of(16, there), scans)
        new = draw(8, here)
        expected = {"a": new[:, 0], "b": new[:, 1]}
        p_values = find_shift(known, names_of(8, here), expected, new.mean(1))
        fired.append(min(p_values.values()) < 0.05)
    assert np.mean(fired) <= 0.07  # 0.035 to 0.058 of 3000 draws


def test_many_patients_are_compared_in_moments() -> None:
    known, number = reference(32), 10_000
    values = np.random.default_rng(0).uniform(0.6, 0.99, (number, 2))
    expected = {"a": values[:, 0], "b": values[:, 1]}
    found = find_shift(known, names_of(number, 1), expected, values.mean(1))
    assert all(0 < p_value <= 1 for p_value in found.values())


def test_weights_round_nothing_that_makes_scans_unlike() -> None:
    same = np.full((9, 1, 4), 0.6)
    stored = Reference.from_scans(["a"], names_of(9, 1), same).to_tensor()
    known = Reference.from_tensor(stored, ["a"])
    assert find_shift(known, names_of(8, 1), {"a": [0.6] * 8}, [0.6] * 8)["a"] > 0.5


def test_a_structure_that_may_be_absent_counts_where_it_is_predicted() -> None:
    known = reference(20)
    known.values[:12, 1, 1:3] = 0  # missed
    known.values[12, 1, 3:] = 0  # and not always there
    expected = {"a": [0.8] * 8, "b": known.values[12:, 1, 1]}
    assert find_shift(known, names_of(8, 1), expected, [0.8] * 8)["b"] > 0.5


@pytest.mark.parametrize("p_values", [[0.01, 0.04, np.nan, 0.03], [0.5], [], [0.2, 0.2]])
def test_holm(p_values: list[float]) -> None:
    made = np.array([each for each in p_values if not np.isnan(each)])
    expected = [
        max(min(1.0, np.sum(made >= lower) * lower) for lower in made[made <= each])
        if not np.isnan(each)
        else np.nan
        for each in p_values
    ]
    np.testing.assert_allclose(holm(p_values), expected)
