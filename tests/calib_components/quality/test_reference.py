"""The reference of validation scans: its limits by definition, their coverage, and what weights
hold of it.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from calib_components.errors import InputError
from calib_components.quality import Reference
from calib_components.quality.reference import holding_patients
from tests.calib_components.quality.made_up import reference


@pytest.mark.parametrize(("patients", "scans"), [(9, 1), (12, 3), (40, 2)])
def test_limits_are_those_of_the_definition(patients: int, scans: int) -> None:
    found = reference(patients, scans)
    rank = math.ceil(round(0.9 * (patients + 1), 9)) - 1
    by_patient = found.values[..., 1:].reshape(patients, scans, 2, 4).transpose(3, 0, 1, 2)
    expected, dsc, predicted, true = by_patient
    worst = ((expected - dsc) / (1 - expected)).max(1)
    scores = []
    for number in range(patients):
        others = np.delete(worst, number, 0)
        scores.append((worst[number] / np.sqrt((others**2).mean(0))).max())
    scale = np.sqrt((worst[:, 1] ** 2).mean()) * sorted(scores)[rank]
    for value in (0.3, 0.8, 0.99):
        bound = max(0, value - scale * (1 - value))
        assert found.lower_bound("b", value) == pytest.approx(bound, abs=1e-9)
    q = sorted((abs(predicted - true) / predicted)[..., 1].max(1))[rank]
    assert found.volume_range("b", 500) == pytest.approx((500 * (1 - q), 500 * (1 + q)), abs=1e-6)


def test_fewer_than_nine_patients_give_no_limits() -> None:
    found = reference(8, scans=5)
    assert math.isnan(found.lower_bound("a", 0.8))
    assert np.isnan(found.volume_range("a", 100)).all()
    assert found.coverage(reference(20)) == {}


@pytest.mark.parametrize(("count", "structures"), [(9, 3), (19, 3), (32, 3), (9, 1), (19, 1)])
def test_the_bounds_of_a_scan_hold_together_for_nine_in_ten_exchangeable_patients(
    count: int, structures: int
) -> None:
    rng, names = np.random.default_rng(0), "abc"[:structures]
    held = []
    for _ in range(2000):
        shape = (count + 1, 2, structures)  # of each patient two scans
        expected = rng.uniform(0.6, 0.99, shape)
        patient = rng.normal(0, 0.5, (count + 1, 1, 1))
        residuals = patient + rng.normal(0, 0.5, shape) * [0.2, 1, 3][:structures]
        dsc = (expected - residuals * (1 - expected)).clip(0, 1)
        volumes = np.ones_like(dsc)
        values = np.stack([expected, dsc, volumes, volumes], -1).reshape(-1, structures, 4)
        patients = np.repeat(np.arange(count + 1), 2).astype(str)
        new = patients == str(count)
        known = Reference.from_scans(names, patients[~new], values[~new])
        bounds = [known.lower_bound(name, expected[-1, :, i]) for i, name in enumerate(names)]
        held.append((bounds <= dsc[-1].T).all())
    assert 0.88 <= np.mean(held) <= 0.975


def test_limits_are_tried_on_other_patients() -> None:
    known, tested = reference(20), reference(10, scans=2, seed=1)
    dsc_holds, volume_holds = np.ones((2, 20, 2))
    for number, name in enumerate("ab"):
        _, expected, dsc, expected_volume, volume = tested.values[:, number].T
        low, high = known.volume_range(name, expected_volume)
        dsc_holds[:, number] = dsc >= known.lower_bound(name, expected)
        volume_holds[:, number] = (low <= volume) & (volume <= high)
    by_patient = volume_holds.reshape(10, 2, 2).all(1)
    found = known.coverage(tested)
    assert {name: (each.held, each.patients) for name, each in found.items()} == {
        "DSC of all structures": (dsc_holds.reshape(10, 4).all(1).sum(), 10),
        "a volume": (by_patient[:, 0].sum(), 10),
        "b volume": (by_patient[:, 1].sum(), 10),
        "all volumes": (by_patient.all(1).sum(), 10),
    }
    low, high = holding_patients(20, 10)
    assert str(found["a volume"]) == f"{found['a volume'].held} of 10 ({low} to {high})"
    assert found["all volumes"].expected is None
    tested.values[::2, :, 4] *= 3
    assert known.coverage(tested)["a volume"].fails
    # Without the structure, there is nothing to hold
    tested.values[:4, 0, 1:3] = np.nan
    assert known.coverage(tested)["a volume"].patients == 8


def test_the_number_of_patients_for_whom_a_limit_holds_is_as_expected() -> None:
    """Of 20 new patients, with other limits of 19 each time."""
    held = []
    for seed in range(2000):
        values = reference(39, seed=seed).values
        low, high = Reference(["a", "b"], values[:19]).volume_range("a", values[19:, 0, 3])
        held.append(((low <= values[19:, 0, 4]) & (values[19:, 0, 4] <= high)).sum())
    assert holding_patients(19, 20) == (13, 20)
    assert np.mean([count < 13 for count in held]) == pytest.approx(0.012, abs=0.01)
    assert np.mean([count < 14 for count in held]) == pytest.approx(0.026, abs=0.01)


def test_a_structure_of_few_patients_has_no_limits() -> None:
    found = reference(20)
    found.values[8:, 1, 1:3] = np.nan
    assert math.isnan(found.lower_bound("b", 0.8))
    assert 0 < found.lower_bound("a", 0.8) < 0.8


def test_certain_predictions_have_limits_too() -> None:
    right, wrong, names = (
        [[(1, 1, 1000, 1000)]] * 20,
        [[(1, 0.2, 1000, 0)]] * 20,
        [f"p{i}" for i in range(40)],
    )
    assert Reference.from_scans(["a"], names[:20], right).lower_bound("a", 1.0) == pytest.approx(1)
    half = Reference.from_scans(["a"], names, right + wrong)
    assert half.lower_bound("a", 1.0) <= 0.2


def test_absent_structures_do_not_count_and_missed_ones_do() -> None:
    absent = [(0.9, 0.9, 1000, 900), (math.nan, math.nan, 0, 0)]
    missed = [(0.9, 0.9, 1000, 900), (math.nan, 0, 0, 50)]
    found = Reference.from_scans(["a", "b"], ["q", "p"], [absent, missed])
    assert found.always == ["a"]
    assert found.values[:, 0, 0].tolist() == [1, 0]
    np.testing.assert_array_equal(found.values[:, 1, 1:3], [[np.nan, np.nan], [0, 0]])
    assert found.place(0.89) == (2, 2)  # "b" counts in neither
    assert found.place(0.95) == (0, 2)


def test_weights_hold_the_reference() -> None:
    found = Reference.from_scans(
        ["a", "b"], ["p"], [[(0.9, 0.8, 1000, 9), (math.nan, math.nan, 0, 0)]]
    )
    values = found.to_tensor()
    assert values.dtype == torch.float32  # as a GPU of Apple demands
    assert values.isfinite().all()
    np.testing.assert_allclose(
        Reference.from_tensor(values, ["a", "b"]).values, found.values, rtol=1e-7
    )
    for wrong in (values, torch.ones(3)):
        with pytest.raises(InputError, match=r"is \(.*\), not \(scans, 3 structures, 5 values"):
            Reference.from_tensor(wrong, ["a", "b", "c"])
    empty = Reference.from_tensor(torch.empty(0), ["a", "b"])  # of weights without a reference
    assert np.isnan(empty.lower_bound("a", 0.8))
    assert (empty.place(0.8), empty.always) == ((0, 0), ["a", "b"])
    assert math.isnan(empty.lowest_estimate)
