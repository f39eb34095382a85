"""The fit of scales and biases, next to optimizers that have all logits in memory."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch.nn.functional import cross_entropy

from calib_components.errors import InputError
from calib_components.posthoc import (
    ClassBias,
    TemperatureScaling,
    VectorEstimate,
    VectorScaling,
    vector,
)
from calib_components.posthoc.vector import BiasEstimate
from tests.calib_components.posthoc.made_up import draw, voxels

KINDS = [VectorScaling, ClassBias]
SHAPES = {2: (9, 4, 20, 16), 3: (9, 4, 8, 10, 4)}
NAMES = list("abcdefgha")
TRUE: dict[str, Any] = {"scale": [0.4, 1.1, 0.8, 0.6], "bias": [0.5, -0.4, 0.2, -0.3], "spread": 2}


def fit(
    kind: type[VectorScaling],
    logits: torch.Tensor,
    y: torch.Tensor,
    names: Sequence[str] = NAMES,
    **options: Any,
) -> tuple[VectorScaling, VectorEstimate]:
    calibrator = kind(**options)
    calibrator.update(logits, y, names)
    return calibrator, calibrator.compute()


def minimum(
    kind: type[VectorScaling], logits: torch.Tensor, y: torch.Tensor, mask: Any = slice(None)
) -> tuple[list[float], float]:
    """The parameters of the lowest NLL of all voxels of a mask, and that NLL."""
    values, label = (each[mask] for each in voxels(logits, y))
    classes, true = values.shape[1], np.eye(values.shape[1])[label]
    is_shared = kind is ClassBias  # all classes have one scale, and the background no bias

    def split(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if is_shared:
            return np.repeat(theta[:1], classes), np.append(0, theta[1:])
        return theta[:classes], theta[classes:]

    def nll(theta: np.ndarray) -> tuple[float, np.ndarray]:
        scale, bias = split(theta)
        log_p = log_softmax(values * scale + bias, 1)
        residual = np.exp(log_p) - true
        by_scale, by_bias = (residual * values).mean(0), residual.mean(0)
        gradient = [[by_scale.sum()], by_bias[1:]] if is_shared else [by_scale, by_bias]
        return -(log_p * true).sum(1).mean(), np.concatenate(gradient)

    start = [1] + [0] * (classes - 1) if is_shared else [1] * classes + [0] * classes
    found = minimize(nll, start, jac=True, method="BFGS", options={"gtol": 1e-9})
    scale, bias = split(found.x)
    parameters = [1 / scale[0], *bias[1:]] if is_shared else [*scale, *bias - bias.mean()]
    return parameters, found.fun


def values(estimate: VectorEstimate) -> list[float]:
    return [*estimate.parameters.values()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dims", "region", "ignore_index"), [(2, "all", None), (2, "predicted", 3), (3, "all", 255)]
)
def test_agrees_with_scipy(
    kind: type[VectorScaling], dims: int, region: str, ignore_index: int | None
) -> None:
    """Samples hold all voxels."""
    logits, y = draw(SHAPES[dims], **TRUE)
    if ignore_index == 255:
        y[:, :, ::3] = 255
        logits[:, :, ::3] = torch.nan
    if ignore_index == 3:
        logits = logits[:, :3]
    mask = y.flatten() != (-1 if ignore_index is None else ignore_index)
    if region == "predicted":
        mask &= logits.argmax(1).flatten() > 0
    calibrator, estimate = fit(kind, logits, y, region=region, ignore_index=ignore_index)
    expected, nll = minimum(kind, logits, y, mask)
    assert values(estimate) == pytest.approx(expected, abs=1e-4)
    assert (estimate.patients, estimate.voxels) == (8, mask.sum())
    own = logits.double().movedim(1, -1).flatten(0, -2)[mask]
    calibrated, label = calibrator(own), y.flatten()[mask]
    assert estimate.nll_after == pytest.approx(nll, rel=1e-7)
    assert cross_entropy(calibrated, label).item() == pytest.approx(nll, rel=1e-6)
    assert estimate.nll_before == pytest.approx(cross_entropy(own, label).item())
    changed = (calibrated.argmax(1) != own.argmax(1)).double().mean().item()
    assert estimate.changed == pytest.approx(changed)
    assert f"{changed:.3%}" in estimate.effect()


def test_two_classes_have_a_scale_each() -> None:
    """As Guo et al. write it, of logits as they are: one scale would be less likely."""
    logits, y = draw((9, 2, 20, 16), scale=[0.4, 1.5], bias=[0.3, -0.3], spread=2)
    _, estimate = fit(VectorScaling, logits, y)
    expected, nll = minimum(VectorScaling, logits, y)
    assert values(estimate) == pytest.approx(expected, abs=1e-4)
    assert estimate.nll_after == pytest.approx(nll, abs=1e-7)
    assert values(estimate)[1] > 2 * values(estimate)[0]
    assert estimate.nll_after < fit(ClassBias, logits, y)[1].nll_after - 0.01


def test_the_samples_of_many_patients_take_bounded_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whose order does not change what is kept of each."""
    logits, y = draw((16, 4, 40, 40), **TRUE)
    names = [f"patient{number}" for number in range(16)]
    _, whole = fit(ClassBias, logits, y, names)
    monkeypatch.setattr(vector, "MOST_LOGITS", 16 * 4 * 2 * 100)
    kept = []
    for order in (range(16), range(15, -1, -1)):
        calibrator = ClassBias()
        for number in order:
            calibrator.update(logits[number : number + 1], y[number : number + 1], names[number])
        samples = calibrator._gathered()
        assert sum(each.logits.size for each in samples.values()) <= vector.MOST_LOGITS
        assert min(len(each.label) for each in samples.values()) > 50
        kept.append(samples)
        estimate = calibrator.compute()
        assert estimate.voxels == y.numel()
        assert estimate.nll_after == pytest.approx(whole.nll_after, rel=0.1)
    for name in names:
        np.testing.assert_array_equal(*(samples[name].logits for samples in kept))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spread", [0.2, 30.0])
@pytest.mark.parametrize(
    "shift", [(0, 0, 0, 0), (1e4, 1e4, 1e4, 1e4), (0, 0, -1000, 0)], ids=["as is", "far", "low"]
)
def test_logits_of_any_size_have_their_minimum(
    kind: type[VectorScaling], spread: float, shift: tuple[float, ...]
) -> None:
    logits, y = draw(SHAPES[2], **{**TRUE, "spread": spread})
    _, nll = minimum(kind, logits, y)
    given = logits.double() + torch.tensor(shift).view(4, 1, 1)
    assert fit(kind, given, y)[1].nll_after == pytest.approx(nll, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_patient_is_sampled_and_its_voxels_are_weighted(kind: type[VectorScaling]) -> None:
    """Seven in eight voxels are background, but as many are kept of it as of foreground."""
    logits, y = draw((2, 3, 300, 300), [0.5, 0.9, 0.7], [5.0, 0.0, -0.4])
    logits[:, 0] += 8
    logits[:, :, 150:] *= 2  # the first voxels are of another kind
    whole, estimate = fit(kind, logits, y, ["a", "b"])
    sizes = [len(pickle.dumps(whole))]
    whole.update(logits, y, ["a", "b"])
    assert len(pickle.dumps(whole)) == pytest.approx(sizes[0], rel=0.01)
    assert sizes[0] < 2 * 20_000 * 30
    assert estimate.voxels == y.numel()
    assert estimate.nll_before == pytest.approx(cross_entropy(logits, y[:, 0]).item(), rel=0.02)
    expected, nll = minimum(kind, logits, y)
    assert values(estimate) == pytest.approx(expected, abs=0.05)
    assert cross_entropy(whole(logits), y[:, 0]).item() == pytest.approx(nll, rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_processes_do_not_matter(
    kind: type[VectorScaling], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where some voxels are kept alone: the same ones."""
    monkeypatch.setattr("calib_components.posthoc.vector.MOST_VOXELS", 100)
    logits, y = draw(SHAPES[3], **TRUE)
    whole, expected = fit(kind, logits, y)
    first, second = kind(), kind()
    for case, name in enumerate(NAMES):
        (first if case < 4 else second).update(logits[[case]], y[[case]], name)
    first.add(pickle.loads(pickle.dumps(second)))
    assert first.compute() == expected
    assert whole.left_out().keys() == {*NAMES}
    text = json.dumps(expected.to_dict(), allow_nan=False)
    assert kind.estimate.from_dict(json.loads(text)) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("patients", [5, 10])
def test_patients_that_are_left_out_are_as_in_refits(
    kind: type[VectorScaling], patients: int
) -> None:
    """Up to eight patients one by one, more of them in eight folds."""
    logits, y = draw((patients, 4, 20, 16), **TRUE)
    names = [f"patient{number}" for number in range(patients)]
    left_out = fit(kind, logits, y, names)[0].left_out()
    for number, name in enumerate(names):
        others = [other for other in range(patients) if other % 8 != number % 8]
        refit, _ = fit(kind, logits[others], y[others], [names[other] for other in others])
        torch.testing.assert_close(left_out[name].state(), refit.state(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_that_one_patient_alone_has_is_no_one_elses(kind: type[VectorScaling]) -> None:
    logits, y = draw((4, 4, 20, 16), **TRUE)
    y[1:][y[1:] == 2] = 0
    calibrator, _ = fit(kind, logits, y, [*"abcd"])
    with pytest.raises(InputError, match="class 2 but in patients that are left out together"):
        calibrator.left_out()


def dsc(logits: torch.Tensor, y: torch.Tensor) -> float:
    found, true = logits.argmax(1) > 0, y[:, 0] > 0
    return float(2 * (found & true).sum() / (found.sum() + true.sum()))


def test_biases_mend_structures_that_are_too_large_and_a_temperature_does_not() -> None:
    logits, y = draw((12, 4, 30, 30), 1.5, [4.0, 0.0, 0.0, 0.0])
    temperature, bias = TemperatureScaling(), ClassBias()
    for calibrator in (temperature, bias):
        calibrator.update(logits[:8], y[:8], [*"abcdefgh"])
        calibrator.compute()
    new, label = logits[8:], y[8:]
    assert dsc(temperature(new), label) == dsc(new, label)
    assert dsc(bias(new), label) > dsc(new, label) + 0.1
    expected = [(1 - each(new).softmax(1)[:, 0]).sum().item() for each in (temperature, bias)]
    true = (label > 0).sum().item()
    assert expected[0] > 1.5 * true
    assert expected[1] == pytest.approx(true, rel=0.05)


def test_one_patient() -> None:
    calibrator, estimate = fit(ClassBias, *draw(SHAPES[2], **TRUE), ["a"] * 9)
    assert calibrator.left_out() == {}
    assert estimate.summary().startswith("temperature 1.")
    assert estimate.summary().endswith("fitted on 1 patient")


def test_warnings() -> None:
    parameters = {f"scale of class {k}": 1.2 for k in range(4)}
    few = VectorEstimate({**parameters, "scale of class 2": -0.1}, 0.3, 0.2, 0.001, 7, 100)
    (turned,) = few.warnings()
    assert turned.startswith("The scale of class 2 is negative")
    (turned,) = BiasEstimate({"temperature": -1.0}, 0.3, 0.2, 0.001, 7, 100).warnings()
    assert turned.startswith("The temperature is negative")
    assert not VectorEstimate(parameters, 0.3, 0.2, 0.001, 8, 100).warnings()
    assert "scale of class 1 1.20, scale of class 2 -0.10" in few.summary()


@pytest.mark.parametrize("kind", KINDS)
def test_mistakes(kind: type[VectorScaling]) -> None:
    logits, y = draw(SHAPES[2], **TRUE)
    with pytest.raises(InputError, match="No voxel is labelled as class 1"):
        fit(kind, logits, y.masked_fill(y == 1, 0))
    with pytest.raises(InputError, match="no voxels in region 'predicted'"):
        fit(kind, logits - torch.tensor([-50, 0, 0, 0]).view(4, 1, 1), y, region="predicted")
    with pytest.raises(InputError, match="sigmoid"):
        kind(sigmoid=True)
    with pytest.raises(InputError, match="one channel is a sigmoid"):
        fit(kind, logits[:, :1], y > 0)
    for factor in (0.1, 1, 1e5):
        with pytest.raises(InputError, match="did not converge: the classes may be separable"):
            fit(kind, factor * logits, logits.argmax(1, keepdim=True))
