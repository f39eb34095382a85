"""The fit of scales and biases, next to optimizers that have all logits in memory."""

from __future__ import annotations

import json
import math
from typing import Any

import fiducio
import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch.nn.functional import cross_entropy

from calib_components.errors import InputError
from calib_components.posthoc import Calibrator, ClassBias, VectorEstimate, VectorScaling
from tests.calib_components.posthoc.made_up import draw, voxels

KINDS = [VectorScaling, ClassBias]
SHAPES = {2: (9, 4, 20, 16), 3: (9, 4, 8, 10, 4)}
NAMES = list("abcdefgha")
TRUE = {"scale": [0.4, 1.1, 0.8, 0.6], "bias": [0.5, -0.4, 0.2, -0.3], "spread": 2.0}


def fit(
    kind: type[Calibrator],
    logits: torch.Tensor,
    y: torch.Tensor,
    names: Any = NAMES,
    **options: Any,
) -> Any:
    calibrator = kind(**options)
    for _ in calibrator.passes():
        for case, name in enumerate(names):
            calibrator.update(logits[[case]], y[[case]], name)
    return calibrator, calibrator.compute()


def minimum(
    kind: type[Calibrator], logits: torch.Tensor, y: torch.Tensor, mask: Any = slice(None)
) -> tuple[np.ndarray, float]:
    """The parameters of the lowest NLL, scales before biases, and that NLL."""
    values, label = voxels(logits, y)
    centered = (values - values.mean(1, keepdims=True))[mask]
    true = np.eye(values.shape[1])[label[mask]]

    def nll(theta: np.ndarray) -> tuple[float, np.ndarray]:
        scale, bias = theta.reshape(2, -1)
        log_p = log_softmax(centered * scale + bias, 1)
        residual = np.exp(log_p) - true
        gradient = np.stack(
            [(residual * centered).mean(0) * (kind is VectorScaling), residual.mean(0)]
        )
        return -(log_p * true).sum(1).mean(), gradient.ravel()

    found = minimize(
        nll, np.repeat([1.0, 0.0], len(true[0])), jac=True, method="BFGS", options={"gtol": 1e-9}
    )
    theta = found.x.reshape(2, -1)
    return np.concatenate([theta[0], theta[1] - theta[1].mean()]), found.fun


def values(estimate: VectorEstimate) -> list[float]:
    return [*estimate.parameters.values()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dims", "region", "ignore_index"), [(2, "all", None), (2, "predicted", 3), (3, "all", 255)]
)
def test_agrees_with_scipy(
    kind: type[Calibrator], dims: int, region: str, ignore_index: int | None
) -> None:
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
    assert values(estimate) == pytest.approx(expected[-len(estimate.parameters) :], abs=1e-4)
    assert (estimate.patients, estimate.voxels) == (8, mask.sum())
    own = logits.double().movedim(1, -1).flatten(0, -2)[mask]
    calibrated, label = calibrator(own), y.flatten()[mask]
    assert estimate.nll_after == pytest.approx(nll, rel=1e-7)
    assert cross_entropy(calibrated, label).item() == pytest.approx(nll, rel=1e-6)
    assert estimate.nll_before == pytest.approx(cross_entropy(own, label).item())
    assert estimate.changed == (calibrated.argmax(1) != own.argmax(1)).sum() > 0
    assert str(estimate.changed) in estimate.effect()


def test_agrees_with_fiducio() -> None:
    logits, y = draw(SHAPES[3], **TRUE)
    calibrator, _ = fit(VectorScaling, logits, y)
    centered = logits - logits.mean(1, keepdim=True)
    theirs = fiducio.VectorScaling(max_iter=1000, lr=0.03).fit(centered, y[:, 0])
    expected = theirs.predict_proba(centered)  # by gradient descent
    torch.testing.assert_close(calibrator(logits).softmax(1), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("spread", [0.2, 30.0])
def test_steps_that_are_too_long_are_halved(spread: float) -> None:
    logits, y = draw(SHAPES[2], **{**TRUE, "spread": spread})
    _, estimate = fit(VectorScaling, logits, y)
    assert estimate.nll_after == pytest.approx(minimum(VectorScaling, logits, y)[1], rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_classes_of_low_probability_are_right_or_refused(kind: type[Calibrator]) -> None:
    logits, y = draw(SHAPES[2], **TRUE)
    for logit in (-12, -20, -25, -30, -1e4):
        logits[:, 2] = logit
        if logit == -12:
            _, estimate = fit(kind, logits, y)
            expected, nll = minimum(kind, logits, y)
            number = len(estimate.parameters)
            assert values(estimate) == pytest.approx(expected[-number:], abs=1e-4)
            assert estimate.nll_after == pytest.approx(nll, rel=1e-9)
            continue
        with pytest.raises(InputError, match=r"^Class 2 is the label of \d+ voxels, .* up to \d"):
            fit(kind, logits, y)


@pytest.mark.parametrize("kind", KINDS)
def test_patients_that_are_left_out_are_as_in_refits(kind: type[Calibrator]) -> None:
    logits, y = draw(SHAPES[2], **TRUE)
    _, estimate = fit(kind, logits, y)
    cases = {name: [i for i, own in enumerate(NAMES) if own == name] for name in NAMES}
    total = 0.0
    for own in cases.values():
        others = [i for i in range(len(NAMES)) if i not in own]
        refit, _ = fit(kind, logits[others], y[others], [NAMES[i] for i in others])
        total += cross_entropy(refit(logits[own]), y[own][:, 0], reduction="sum").item()
    assert estimate.nll_left_out == pytest.approx(total / y.numel(), rel=1e-4)
    assert estimate.nll_after < estimate.nll_left_out


@pytest.mark.parametrize("kind", KINDS)
def test_parts_files_and_memory(kind: type[Calibrator], monkeypatch: pytest.MonkeyPatch) -> None:
    logits, y = draw(SHAPES[3], **TRUE)
    whole, expected = fit(kind, logits, y)
    monkeypatch.setattr("calib_components.metrics.voxels.CPU_CHUNK", 200)
    first, second = (kind.from_dict(json.loads(json.dumps(whole.to_dict()))) for _ in range(2))
    for part in (first, second):
        part._rows.clear()
    for case, name in enumerate(NAMES):
        (first, second)[case % 2].update(logits[[case]], y[[case]], name)
    first.add(second)
    estimate = first.compute()
    assert values(estimate) == pytest.approx(values(expected))
    rows = first.to_dict()["patients"].values()
    assert {np.shape(row) for row in rows} == {(1, 4 + 3 * 4 + 4 * 4**2)}
    with pytest.raises(InputError, match="different options"):  # sums at other parameters
        first.add(kind())
    text = json.dumps(estimate.to_dict(), allow_nan=False)
    assert kind.estimate.from_dict(json.loads(text)) == estimate


def test_one_patient() -> None:
    _, estimate = fit(VectorScaling, *draw(SHAPES[2], **TRUE), ["a"] * 9)
    assert math.isnan(estimate.nll_left_out)
    assert estimate.summary().endswith("fitted on 1 patient")
    assert "nan" not in estimate.summary()
    assert "null" in json.dumps(estimate.to_dict(), allow_nan=False)
    assert str(VectorEstimate.from_dict(estimate.to_dict())) == str(estimate)


def test_warnings() -> None:
    parameters = {f"scale of class {k}": 1.2 for k in range(5)}
    negative = {**parameters, "scale of class 2": -0.1}
    few = VectorEstimate(negative, 0.3, 0.2, 0.31, 7, 7, 100)
    turned, first, second = few.warnings()
    assert turned.startswith("The scale of class 2 is negative")
    assert first.startswith("7 patients, fewer than 8, for 4 parameters")
    assert "left out of the fit is 0.3100, more than 0.3000" in second
    assert not VectorEstimate(parameters, 0.3, 0.2, 0.29, 7, 8, 100).warnings()
    assert "scale of class 1 1.20, scale of class 2 -0.10" in few.summary()


def test_mistakes() -> None:
    logits, y = draw(SHAPES[2], **TRUE)
    once = VectorScaling()
    once.update(logits, y, NAMES)
    with pytest.raises(InputError, match="several passes"):
        once.compute()
    with pytest.raises(InputError, match="Class 1 is the label of 0 voxels"):
        fit(ClassBias, logits, y.masked_fill(y == 1, 0))
    with pytest.raises(InputError, match="sigmoid"):
        VectorScaling(sigmoid=True)
    with pytest.raises(InputError, match="one channel is a sigmoid"):
        fit(ClassBias, logits[:, :1], y > 0)
    predicted, shown = logits.argmax(1, keepdim=True), torch.randint(4, y.shape)
    for values, label in ((logits, predicted), (logits * 1e5, y), (0 * logits - 1, shown)):
        with pytest.raises(InputError, match="did not converge, least of all that of class"):
            fit(VectorScaling, values, label)
