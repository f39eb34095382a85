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
    expected, dsc, predicted, true = (
        found.values[:, 1, 1:].reshape(patients, scans, 4).transpose(2, 0, 1)
    )
    rank = math.ceil(round(0.9 * (patients + 1), 9)) - 1
    for value in (0.3, 0.8, 0.99):
        q = sorted(((expected - dsc) / (1 - expected)).max(1))[rank]
        assert found.lower_bound("b", value) == pytest.approx(
            max(0, value - q * (1 - value)), abs=1e-9
        )
    q = sorted((abs(predicted - true) / predicted).max(1))[rank]
    assert found.volume_range("b", 500) == pytest.approx((500 * (1 - q), 500 * (1 + q)), abs=1e-6)


def test_fewer_than_nine_patients_give_no_limits() -> None:
    found = reference(8, scans=5)
    assert math.isnan(found.lower_bound("a", 0.8))
    assert np.isnan(found.volume_range("a", 100)).all()
    assert "limits, which need 9 validation patients: there are 8" in found.note


def test_a_bound_holds_for_nine_in_ten_exchangeable_patients() -> None:
    held = []
    # 19 patients of two scans, and a new one: the bound holds in 18 of 20 cases
    for seed in range(5000):
        values = reference(20, scans=2, seed=seed).values
        known = Reference(["a", "b"], values[:-2])
        held.append(
            all(dsc >= known.lower_bound("a", expected) for expected, dsc in values[-2:, 0, 1:3])
        )
    assert np.mean(held) == pytest.approx(0.9, abs=0.01)


def test_the_number_of_patients_for_whom_a_limit_holds_is_as_expected() -> None:
    """Of 20 new patients, with other limits of 19 each time."""
    held = []
    for seed in range(2000):
        values = reference(39, seed=seed).values
        known = Reference(["a", "b"], values[:19])
        held.append(sum(dsc >= known.lower_bound("a", e) for e, dsc in values[19:, 0, 1:3]))
    assert holding_patients(19, 20) == (13, 20)
    assert np.mean([count < 13 for count in held]) == pytest.approx(0.012, abs=0.01)
    assert np.mean([count < 14 for count in held]) == pytest.approx(0.026, abs=0.01)


def test_evidence_says_what_the_scans_showed() -> None:
    rng = np.random.default_rng(0)
    dsc = rng.uniform(0.4, 0.95, 30)
    patients = [f"p{number}" for number in range(30)]

    def evidence(estimates: np.ndarray, count: int = 30) -> str:
        volumes = np.full((30, 2), 1000.0)
        values = np.column_stack([estimates, dsc, volumes])[:, None]
        return Reference.from_scans(["a"], patients[:count], values[:count]).evidence

    good = evidence(dsc + 0.05)
    assert "On 30 labelled scans" in good
    assert "closed 100% of the gap between a random and the perfect order [100%, 100%]" in good
    assert "minus the true one was +0.050 on average" in good
    bad = (dsc < 0.7).sum()
    assert f"below 0.7 was 1.00 [1.00, 1.00]; scans with it: {bad}." in good
    assert "not shown to be better than chance" in evidence(1 - dsc)
    assert evidence(dsc, count=5) == ""
    assert "ROC" not in evidence(dsc, count=6) or (dsc[:6] < 0.7).sum() >= 5
    missed = evidence(np.where(dsc < 0.55, np.nan, dsc))  # the worst first, as on the page
    assert "nan" not in missed
    assert "closed 9" in missed
    dsc[:] = 0.9
    assert evidence(dsc) == ""  # there is no order


def test_the_note_says_of_how_many_patients_limits_are() -> None:
    found = reference(20)
    found.values[8:, 1, 1:3] = np.nan
    assert "Only 8 of them count for b; below 9, it has no limits." in found.note
    assert "count for a" not in found.note


def test_certain_predictions_have_limits_too() -> None:
    right, wrong, names = (
        [[(1, 1, 1000, 1000)]] * 20,
        [[(1, 0.2, 1000, 0)]] * 20,
        [f"p{i}" for i in range(40)],
    )
    assert Reference.from_scans(["a"], names[:20], right).lower_bound("a", 1.0) == pytest.approx(1)
    assert Reference.from_scans(["a"], names, right + wrong).lower_bound("a", 1.0) == pytest.approx(
        0.2
    )


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
    assert "limits, which need 9 validation patients: there are 0" in empty.note
    assert "optimistic" in reference(9).note
