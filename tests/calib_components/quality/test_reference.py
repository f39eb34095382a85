"""The reference of validation scans: its limits by definition, their coverage, and what weights hold of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from calib_components.errors import InputError
from calib_components.quality import Reference
from tests.calib_components.quality.made_up import estimate, reference, scan


def quantile(residuals: dict[str, list[float]]) -> float:
    """The conformal quantile, of residuals by patient."""
    worst = sorted(max(values) for values in residuals.values())
    return worst[math.ceil(round(0.9 * (len(worst) + 1), 9)) - 1]


@pytest.mark.parametrize(("patients", "scans"), [(9, 1), (12, 3), (40, 2)])
def test_limits_are_those_of_the_definition(patients: int, scans: int) -> None:
    found = reference(patients, scans)
    dsc: dict[str, list[float]] = {}
    volumes: dict[str, list[float]] = {}
    for patient, _, expected, true, predicted, volume in found.values[:, 1]:
        dsc.setdefault(patient, []).append((expected - true) / (1 - expected))
        volumes.setdefault(patient, []).append(abs(predicted - volume) / predicted)
    for value in (0.3, 0.8, 0.99):
        assert found.lower_bound("b", value) == pytest.approx(max(0, value - quantile(dsc) * (1 - value)), abs=1e-9)
    q = quantile(volumes)
    assert found.volume_range("b", 500) == pytest.approx((500 * (1 - q), 500 * (1 + q)), abs=1e-6)


def test_fewer_than_nine_patients_give_no_limits() -> None:
    found = reference(8, scans=5)
    assert math.isnan(found.lower_bound("a", 0.8))
    assert np.isnan(found.volume_range("a", 100)).all()
    assert "8 validation patients, and limits need 9" in found.note


def test_a_bound_holds_for_nine_in_ten_exchangeable_patients() -> None:
    rng, held, trials = np.random.default_rng(1), 0, 5000
    for _ in range(trials):  # 19 patients of two scans, and a new one: the bound holds in 18 of 20 cases
        estimates = rng.uniform(0.6, 0.99, (20, 2))
        dsc = (estimates + rng.normal(0, 0.05, (20, 2)) + rng.normal(0, 0.05, (20, 1))).clip(0, 1)
        columns = np.broadcast_arrays(np.arange(20)[:, None], 1, estimates, dsc, 1, 1)
        known = Reference(["a"], np.stack(columns, -1)[:19].reshape(38, 1, 6))
        held += all(dsc[19, i] >= known.lower_bound("a", estimates[19, i]) for i in (0, 1))
    assert held / trials == pytest.approx(0.9, abs=0.01)


def test_certain_predictions_have_limits_too() -> None:
    right = [(f"p{i}", {"a": estimate(1.0)}, {"a": (1.0, 1000.0)}) for i in range(20)]
    wrong = [(f"q{i}", {"a": estimate(1.0)}, {"a": (0.2, 0.0)}) for i in range(20)]
    assert Reference.from_scans(right).lower_bound("a", 1.0) == pytest.approx(1)
    assert Reference.from_scans(right + wrong).lower_bound("a", 1.0) == pytest.approx(0.2)


def test_absent_structures_do_not_count_and_missed_ones_do() -> None:
    absent = ({"a": estimate(0.9), "b": estimate(math.nan, 0, 0)}, {"a": (0.9, 900.0), "b": (math.nan, 0.0)})
    missed = ({"a": estimate(0.9), "b": estimate(math.nan, 0, 0)}, {"a": (0.9, 900.0), "b": (0.0, 50.0)})
    found = Reference.from_scans([("p", *absent), ("q", *missed)])
    assert found.always == ["a"]
    np.testing.assert_array_equal(found.values[:, 1, 2:4], [[np.nan, np.nan], [0, 0]])
    assert found.place(0.89) == (2, 2)  # "b" counts in neither
    assert found.place(0.95) == (0, 2)


@pytest.mark.parametrize("independent", [True, False])
def test_weights_hold_the_reference(independent: bool) -> None:
    rows = [("p", {"a": estimate(0.9), "b": estimate(math.nan)}, {"a": (0.8, 9.0), "b": (math.nan, 0.0)})]
    found = Reference.from_scans(rows, independent)
    values = found.to_tensor()
    assert values.dtype == torch.float64
    assert values.isfinite().all()
    np.testing.assert_array_equal(Reference.from_tensor(values, ["a", "b"]).values, found.values)
    with pytest.raises(InputError, match="of 2 structures, not 3"):
        Reference.from_tensor(values, ["a", "b", "c"])
    assert ("optimistic" in reference(9, independent=independent).note) is not independent


def test_weights_without_a_reference_give_neither_limits_nor_places() -> None:
    found = Reference.from_tensor(torch.empty(0), ["a", "b"])
    assert math.isnan(found.lower_bound("a", 0.8))
    assert (found.place(0.8), found.always) == ((0, 0), ["a", "b"])
