"""Temperatures of the predicted class, by SciPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional as F

from calib_components.errors import InputError
from calib_components.posthoc import Calibrator, ClassTemperature, TemperatureScaling

Case = tuple[str, torch.Tensor, torch.Tensor]


FACTORS = (0.7, 1.4, 1.0, 2.0)


def made_cases(patients: int = 7, factors: Sequence[float] = FACTORS) -> list[Case]:
    """Cases whose logits are too large by a factor of their predicted class."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    for patient in range(patients):
        logits = 2 * torch.randn(1, len(factors), 9, 8, 7, generator=generator)
        p = logits.softmax(1).movedim(1, -1).flatten(0, -2)
        label = torch.multinomial(p, 1, generator=generator).view(1, 1, 9, 8, 7)
        scaled = logits * torch.tensor(factors)[logits.argmax(1)][:, None]
        cases.append((f"patient{patient}", scaled, label))
    return cases


def fitted(kind: type[Calibrator], cases: list[Case], **options: object) -> Calibrator:
    fit = kind(**options)
    for patient, logits, label in cases:
        fit.update(logits, label, patient)
    return fit


def lowest(cases: list[Case], index: int) -> float:
    """The temperature of the voxels that are predicted as a class, by SciPy."""
    chosen = [
        (logits.movedim(1, -1)[logits.argmax(1) == index], label[:, 0][logits.argmax(1) == index])
        for _, logits, label in cases
    ]
    logits, labels = (torch.cat(parts).double() for parts in zip(*chosen, strict=True))

    def nll(log_t: float) -> float:
        return F.cross_entropy(logits / np.exp(log_t), labels.long()).item()

    return float(np.exp(minimize_scalar(nll, (-1, 1), tol=1e-10).x))


def test_each_is_that_of_its_voxels_also_without_a_patient() -> None:
    cases = made_cases()
    fit = fitted(ClassTemperature, cases)
    estimate = fit.compute()
    values = fit.state()["class_temperature"].tolist()
    assert values == pytest.approx([lowest(cases, index) for index in range(4)], rel=1e-4)
    assert values == pytest.approx(FACTORS, rel=0.1)
    found = [each["temperature"] for each in estimate.temperatures.values()]
    assert found == pytest.approx(values)
    others = fit.left_out()["patient2"].state()["class_temperature"].tolist()
    without = [case for case in cases if case[0] != "patient2"]
    assert others == pytest.approx([lowest(without, index) for index in range(4)], rel=1e-4)
    voxels = sum(each["voxels"] for each in estimate.temperatures.values())
    assert voxels == estimate.voxels == 7 * 9 * 8 * 7
    assert estimate.nll_after < estimate.nll_before
    assert not estimate.warnings()


def test_it_is_mixed_by_the_probabilities_and_keeps_labels() -> None:
    fit = ClassTemperature()
    fit.set_state({"class_temperature": [0.5, 2.0, 3.0]})
    logits = torch.randn(2, 3, 5, 4)
    shares = (logits / (3 * 3 ** (1 / 3))).softmax(1).numpy()  # 3 = 0.5 * 2 * 3
    log_t = np.einsum("bkij,k->bij", shares, np.log([0.5, 2.0, 3.0]))
    expected = logits.numpy() / np.exp(log_t)[:, None]
    np.testing.assert_allclose(fit(logits), expected, rtol=1e-5)
    assert torch.equal(fit(logits).argmax(1), logits.argmax(1))


def test_a_class_without_voxels_or_errors_has_the_temperature_of_all() -> None:
    cases = made_cases()
    for _, logits, label in cases:
        logits[:, 3] = -9.0  # never predicted
        label[label == 3] = 0
        is_second = logits.argmax(1, keepdim=True) == 2
        label[is_second] = 2  # always right
    fit = fitted(ClassTemperature, cases)
    estimate = fit.compute()
    whole = fitted(TemperatureScaling, cases).compute().temperature
    values = fit.state()["class_temperature"].tolist()
    assert values[2:] == pytest.approx([whole] * 2)
    assert [*estimate.temperatures] == ["0", "1", "2"]
    (few,) = {"patient0": fitted(ClassTemperature, cases[:1])}.values()
    assert few.compute().warnings()
    assert few.left_out() == {}


def test_raters_count_as_shares() -> None:
    """Labels of two raters are the mean of the fits to each."""
    cases, others = made_cases(), made_cases()
    for _, _, label in others:
        label[..., :3] = 0
    both = fitted(ClassTemperature, [*cases, *others])
    both.compute()
    shares = [
        (name, logits, (F.one_hot(one[:, 0], 4) + F.one_hot(other[:, 0], 4)).movedim(-1, 1) / 2)
        for (name, logits, one), (_, _, other) in zip(cases, others, strict=True)
    ]
    soft = fitted(ClassTemperature, shares)
    soft.compute()
    torch.testing.assert_close(soft.state(), both.state())


def test_sigmoids_have_none() -> None:
    with pytest.raises(InputError, match="sigmoid: there is no class_temperature"):
        ClassTemperature(sigmoid=True)
    with pytest.raises(InputError, match="one channel is a sigmoid"):
        ClassTemperature().update(torch.randn(1, 1, 4), torch.ones(1, 1, 4), "patient")
