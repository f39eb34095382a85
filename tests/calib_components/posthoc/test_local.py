"""A temperature for each voxel, trained on probabilities around it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from calib_components.errors import InputError
from calib_components.posthoc import LocalTemperature, TemperatureScaling, local
from calib_components.posthoc.local import first_state

Case = tuple[str, torch.Tensor, torch.Tensor]
SIZE = 24


def made_cases(patients: int, seed: int = 0) -> list[Case]:
    """Slices whose logits are 3 times too large right of the middle, where probabilities change
    from row to row, so that a voxel's neighbours say so.
    """
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for patient in range(patients):
        logits = 1.5 * torch.randn(2, 3, SIZE, SIZE, generator=generator)
        logits[..., : SIZE // 2] = logits[..., :1, : SIZE // 2] + 0.1  # alike in a column
        p = logits.softmax(1).movedim(1, -1)
        label = torch.multinomial(p.flatten(0, -2), 1, generator=generator).view(2, 1, SIZE, SIZE)
        logits[..., SIZE // 2 :] *= 3
        cases.append((f"patient{patient:02}", logits, label))
    return cases


def fit_to(cases: list[Case], kind: type = LocalTemperature) -> tuple:
    fit = kind()
    for patient, logits, label in cases:
        fit.update(logits, label, patient)
    return fit, fit.compute()


def nll(calibrator: torch.nn.Module, cases: list[Case]) -> float:
    return float(
        np.mean([F.cross_entropy(calibrator(logits), y[:, 0]).item() for _, logits, y in cases])
    )


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return made_cases(16)


@pytest.fixture(scope="module")
def fitted(cases: list[Case]) -> tuple:
    return fit_to(cases)


def test_neighbours_lower_the_nll_of_new_patients(cases: list[Case], fitted: tuple) -> None:
    fit, estimate = fitted
    temperature, of_all = fit_to(cases, TemperatureScaling)
    new = made_cases(8, seed=1)
    assert nll(fit, new) < 0.97 * nll(temperature, new)
    assert estimate.temperature == pytest.approx(of_all.temperature)
    assert estimate.nll_left_out < 0.97 * estimate.nll_temperature
    assert estimate.nll_after == pytest.approx(nll(fit, cases), rel=1e-3)  # half precision
    assert estimate.nll_before == pytest.approx(of_all.nll_before, rel=1e-3)
    others = fit.left_out()
    left_out = np.mean([nll(others[case[0]], [case]) for case in cases])
    assert estimate.nll_left_out == pytest.approx(left_out, rel=1e-3)
    _, without_a_fold = fit_to([*cases[1::4], *cases[2::4], *cases[3::4]], TemperatureScaling)
    for patient in ("patient00", "patient04"):
        found = others[patient].state()["local_temperature"].item()
        assert found == pytest.approx(without_a_fold.temperature, rel=1e-6)
    for _, logits, _ in new:
        assert torch.equal(fit(logits).argmax(1), logits.argmax(1))


def test_the_same_cases_give_the_same_network(cases: list[Case], fitted: tuple) -> None:
    random = torch.random.get_rng_state()
    again, _ = fit_to(cases)
    assert torch.equal(torch.random.get_rng_state(), random)
    parts = LocalTemperature(), LocalTemperature()
    for number, (patient, logits, label) in enumerate(cases):
        parts[number % 2].update(logits, label, patient)
    parts[0].add(parts[1])
    parts[0].compute()
    for other in (again, parts[0]):
        assert all(
            torch.equal(other.state()[name], each) for name, each in fitted[0].state().items()
        )


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 4)])
def test_a_constant_network_is_one_temperature(shape: tuple[int, ...]) -> None:
    logits = torch.randn(2, 3, *shape)
    fit = LocalTemperature()
    assert torch.equal(fit(logits), logits)
    state = first_state(logits, 1.7)
    fit.set_state(state)
    torch.testing.assert_close(fit(logits), logits / 1.7)
    fit.set_state({**state, "local_bias2": torch.tensor([0.3])})
    torch.testing.assert_close(fit(logits), logits / (1.7 * np.exp(0.3)))


def test_without_an_epoch_it_is_one_temperature(
    cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "MOST_EPOCHS", 0)
    fit, estimate = fit_to(cases)
    temperature, of_all = fit_to(cases, TemperatureScaling)
    assert estimate.epochs == 0
    assert estimate.warnings()
    assert nll(fit, cases) == pytest.approx(nll(temperature, cases), rel=1e-6)
    assert estimate.nll_after == pytest.approx(of_all.nll_after, rel=1e-3)


def test_large_cases_are_kept_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MOST_NUMBERS", 3 * 1000)
    monkeypatch.setattr(local, "BLOCK", 8)
    logits, label = torch.randn(1, 3, 20, 16, 9), torch.zeros(1, 1, 20, 16, 9)
    fit = LocalTemperature()
    fit.update(logits, label, ["patient"])
    (parts,) = fit._parts.values()
    assert 500 < sum(y.numel() for _, y in parts) <= 1000
    assert all(max(p.shape[2:]) <= 8 and p.shape[2:] == y.shape[2:] for p, y in parts)
    starts = [p.flatten()[0].item() for p, _ in parts]
    assert all(one != other for one, other in pairwise(starts))


def test_what_it_cannot_be_fitted_to(cases: list[Case]) -> None:
    with pytest.raises(InputError, match="needs 15 patients, got 14"):
        fit_to(cases[:14])
    with pytest.raises(InputError, match="region"):
        LocalTemperature("predicted")
    fit = LocalTemperature()
    for patient, logits, label in cases:
        fit.update(logits, label, patient)
    with pytest.raises(InputError, match="needs the cases"):
        LocalTemperature.from_dict(fit.to_dict()).compute()
