"""Calibrators on patients that are left out of their fits, by NumPy."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch.nn import functional as F

from calib_components.errors import InputError
from calib_components.posthoc import (
    CANDIDATES,
    KINDS,
    Calibrator,
    ClassBias,
    LeftOut,
    TemperatureScaled,
    TemperatureScaling,
    advise,
    set_calibrator,
)
from calib_components.posthoc.comparison import TEXTS

Case = tuple[str, torch.Tensor, torch.Tensor]
STRUCTURES = {"one": [1], "two": [2, 3]}
IGNORED = 9


def made_cases(
    patients: int = 7, factor: float = 1.4, bias: Sequence[float] = (0,) * 4
) -> list[Case]:
    """Cases whose logits are too large by a factor, and off by a bias of each class."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    for patient in range(patients):
        logits = 2 * torch.randn(1, 4, 9, 8, 7, generator=generator)
        p = logits.softmax(1).movedim(1, -1).flatten(0, -2)
        label = torch.multinomial(p, 1, generator=generator).view(1, 1, 9, 8, 7)
        given = factor * logits + torch.tensor(bias).view(4, 1, 1, 1)
        cases.append((f"patient{patient}", given, label))
    return cases


def fitted(kind: type[Calibrator], cases: list[Case], **options: object) -> Calibrator:
    fit = kind(**options)
    for patient, logits, label in cases:
        fit.update(logits, label, patient)
    fit.compute()
    return fit


def compared(fits: Sequence[Calibrator], cases: Sequence[Case], **options: Any) -> LeftOut:
    """Add the errors of scans, by each of the calibrators."""
    left_out = LeftOut(fits, STRUCTURES, **options)
    for name, logits, label in cases:
        left_out.rows += left_out.rows_of(logits, label[0], name)
    return left_out


def test_errors_are_those_of_the_definitions() -> None:
    cases = made_cases()
    cases[1] = ("patient0", *cases[1][1:])  # two scans of a patient
    cases[0][2][..., :2] = IGNORED
    fit = fitted(TemperatureScaling, cases, ignore_index=IGNORED)
    errors: dict[str, list] = {}
    for name, logits, label in cases:
        kept = label[0, 0].numpy() != IGNORED
        t = fit.left_out()[name].state()["temperature"].item()
        values, true = logits[0].numpy()[:, kept] / t, label[0, 0].numpy()[kept]
        nll = -np.take_along_axis(log_softmax(values, 0), true[None], 0).mean()
        predicted = values.argmax(0)
        sure, is_right = (
            softmax(values, 0).max(0)[predicted > 0],
            (predicted == true)[predicted > 0],
        )
        row = [nll, sure.sum() - is_right.sum(), len(sure)]
        for classes in STRUCTURES.values():
            inside, is_true = np.isin(predicted, classes), np.isin(true, classes)
            p_of = softmax(values, 0)[classes].sum(0)
            expected = 2 * p_of[inside].sum() / (inside.sum() + p_of.sum())
            dsc = 2 * (inside & is_true).sum() / (inside.sum() + is_true.sum())
            row += [dsc, expected - dsc]
        errors.setdefault(name, []).append(row)
    rows = []
    for scans in map(np.array, errors.values()):
        means = scans.mean(0)
        one, two = means[[3, 5]]
        gap = scans[:, 1].sum() / scans[:, 2].sum()
        rows.append([means[0], (one + two) / 2, one, two, means[[4, 6]].mean(), gap])
    found = compared([fit], cases, ignore_index=IGNORED).table()["temperature"]
    assert [*found] == ["nll", "dsc", "dsc one", "dsc two", "bias", "gap"]
    assert [*found.values()] == pytest.approx(np.mean(rows, 0), rel=1e-4, abs=1e-5)


def test_voxels_that_the_network_did_not_see_are_missed() -> None:
    name, logits, label = made_cases(1)[0]
    left_out = LeftOut([], STRUCTURES)
    seen, cut = (
        left_out.rows_of(logits, label[0], name, outside)[0].values for outside in (0, [30, 0])
    )
    np.testing.assert_allclose(cut[:, 3] - seen[:, 3], [30, 0])
    sizes = (logits[0].argmax(0) == 1).sum().item() + seen[0, 3]
    assert cut[0, 1] == pytest.approx(seen[0, 1] * sizes / (sizes + 30))
    np.testing.assert_allclose(cut[1], seen[1])


@pytest.mark.parametrize(
    ("factor", "bias", "expected"),
    [
        (1.0, (0.0, 1.0, -1.0, 0.5), "bias"),
        (2.0, (0.0,) * 4, "temperature"),
        (1.0, (0.0,) * 4, "none"),
    ],
)
def test_what_helps_patients_left_out_is_advised(
    factor: float, bias: Sequence[float], expected: str
) -> None:
    """Of logits that are off by a bias, by a factor, and not at all."""
    cases = made_cases(20, factor, bias)
    left_out = compared([fitted(kind, cases) for kind in CANDIDATES], cases)
    assert [*left_out.table()] == ["none", *(kind.name for kind in CANDIDATES)]
    assert left_out.advice().name == expected
    assert f"Advised: {TEXTS[expected]}, as" in left_out.describe()


def test_the_network_as_it_is_may_have_a_calibrator() -> None:
    cases = made_cases(6, factor=2.0)
    half = TemperatureScaling().with_state({"temperature": 2.0})
    left_out = compared([fitted(TemperatureScaling, cases)], cases, baseline=half)
    table = left_out.table()
    assert table["none"]["nll"] == pytest.approx(table["temperature"]["nll"], abs=0.01)
    assert left_out.advice().name == "none"


def test_a_calibrator_that_no_patient_can_be_left_out_of_is_not_compared() -> None:
    """A class that one patient alone has."""
    cases = made_cases(4)
    for _, _, label in cases[1:]:
        label[label == 3] = 2
    left_out = compared([fitted(kind, cases) for kind in CANDIDATES], cases)
    assert [*left_out.skipped] == ["bias", "vector"]
    assert left_out.advice().name in ("none", "temperature")
    assert "T and bias: not compared. No voxel is labelled as class 3" in left_out.describe()


def test_one_patient_is_not_left_out_and_advises_nothing() -> None:
    cases = made_cases(1, factor=3.0)
    left_out = compared([fitted(kind, cases) for kind in CANDIDATES], cases)
    assert left_out.advice().name == "none"
    assert [*left_out.table()] == ["none"]
    assert "T: not compared. There is one patient, and none to leave out." in left_out.describe()


def test_what_is_found_where_nothing_is_lowers_the_dsc() -> None:
    """Also if the network as it is finds nothing there, whose DSC is undefined."""
    cases = made_cases(6)
    for _, logits, label in cases[3:]:
        logits[:, 1], label[label == 1] = -50, 0
        logits[:, 1, 0, 0, 0] = logits.amax(1)[:, 0, 0, 0] - 1  # with a bias, class 1 is found
    biased = ClassBias().with_state({"bias_scale": [1.0], "bias_shift": [0.0, 2.0, 0.0, 0.0]})
    left_out = LeftOut([], STRUCTURES)
    left_out.fits, left_out.others = {"bias": biased}, {"bias": {}}
    for name, logits, label in cases:
        left_out.rows += left_out.rows_of(logits, label[0], name)
    rows = {
        name: [row for row in left_out.rows if row.calibrator == name] for name in ("none", "bias")
    }
    assert [np.isnan(row.values[0, 1]) for row in rows["none"]] == [False] * 3 + [True] * 3
    assert [row.values[0, 1] for row in rows["bias"][3:]] == [0] * 3
    table = left_out.table()
    given = np.mean([*(row.values[0, 1] for row in rows["none"][:3]), 1, 1, 1])
    assert table["none"]["dsc one"] == pytest.approx(given)
    assert table["bias"]["dsc one"] < table["none"]["dsc one"] - 0.4


NLL = np.array([0.10, 0.12, 0.14, 0.16, 0.18])
HIGHER = [0.02, 0.03, 0.01, 0.02, 0.02]
UNSURE = [0.20, -0.18, 0.01, 0.02, 0.02]  # within a standard error of 0
UNLIKE: dict[str, Any] = {"is_unlike": True}


@pytest.mark.parametrize(
    ("bias_dsc", "changes", "options", "expected"),
    [
        (HIGHER, {}, {}, "bias"),
        ([np.nan, *HIGHER[1:]], {}, {}, "bias"),
        (HIGHER, {"bias_nll": 0.001}, {}, "temperature: .*but a higher NLL"),
        (UNSURE, {}, {}, "temperature"),
        ([0.0] * 5, {"t_nll": 0.0}, {}, "none"),
        # Where a structure is predicted, T is to be no worse
        (UNSURE, {"t_gap": -0.045}, {}, r"none: .*from 0 .* from \+0\.020 to -0\.045"),
        (UNSURE, {}, {"refused": {"temperature": "T is on the other side of 1"}}, "none: T is on"),
        # Unlike the training's
        (UNSURE, {"bias_nll": 0.001}, UNLIKE, "bias: these scans look unlike"),
        ([-each for each in HIGHER], {}, UNLIKE, "temperature"),
        # Four patients are too few, and a structure that is lost is too much
        (HIGHER[1:], {}, {}, "temperature: .*needs 5 patients, these are 4"),
        (HIGHER[1:], {}, UNLIKE, "temperature"),
        ([-0.8, *[0.5] * 4], {}, UNLIKE, "temperature: .*loses a structure in 1 of 5 patients"),
    ],
)
def test_the_advice_follows_its_rule(
    bias_dsc: list[float], changes: dict[str, float], options: dict[str, Any], expected: str
) -> None:
    given = {"bias_nll": -0.01, "t_nll": -0.02, "t_gap": 0.01} | changes
    nll, dsc = NLL[-len(bias_dsc) :], np.full((len(bias_dsc), 1), 0.8)

    def values(nll: np.ndarray, dsc: np.ndarray, gap: float) -> dict[str, np.ndarray]:
        return {"nll": nll, "dsc": dsc, "gap": np.full(len(nll), gap)}

    left_out = {
        "none": values(nll, dsc, 0.02),
        "temperature": values(nll + given["t_nll"], dsc, given["t_gap"]),
        "bias": values(nll + given["bias_nll"], dsc + np.array(bias_dsc)[:, None], 0.03),
        "vector": values(0 * nll, 0 * dsc + 1, 0),
    }
    advice = advise(left_out, **options)
    assert re.match(expected, f"{advice.name}: {advice.reason}")


def test_a_scan_that_is_ignored_as_a_whole_does_not_choose() -> None:
    cases = made_cases(20, factor=2.0)
    fit = fitted(TemperatureScaling, cases, ignore_index=IGNORED)
    name, logits, label = cases[0]
    ignored = (f"{name} again", logits, torch.full_like(label, IGNORED))
    left_out = compared([fit], [*cases, ignored], ignore_index=IGNORED)
    assert left_out.advice().name == "temperature"


def test_a_patient_without_a_voxel_in_the_region_is_not_left_out() -> None:
    """The fit is to the other patients already."""
    cases = made_cases(3)
    cases[1][2][:] = 0
    fit = fitted(TemperatureScaling, cases, region="foreground")
    assert fit.left_out().keys() == {"patient0", "patient2"}
    cases[2][2][:] = 0
    assert fitted(TemperatureScaling, cases, region="foreground").left_out() == {}


@pytest.mark.parametrize("factor", [0.01, 1.5, 40.0])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_what_an_estimate_says_is_what_is_applied(kind: type[Calibrator], factor: float) -> None:
    """Also where a temperature is at the end of its range."""
    cases = made_cases(3, factor)
    fit = fitted(kind, cases)
    estimate, logits = fit.compute(), torch.cat([logits for _, logits, _ in cases])
    y = torch.cat([label for *_, label in cases])[:, 0].long()
    for values, nll in ((logits, estimate.nll_before), (fit(logits), estimate.nll_after)):
        assert F.cross_entropy(values.double(), y).item() == pytest.approx(nll, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_a_calibrator_that_is_not_fitted_is_not_applied(kind: type[Calibrator]) -> None:
    cases = made_cases(3)
    logits = cases[0][1]
    fit, network = kind(), TemperatureScaled(torch.nn.Identity())
    for patient, values, label in cases:
        fit.update(values, label, patient)
    empty = kind()
    empty.load_state_dict({}, strict=False)
    for each in (kind(), empty, fit, copy.deepcopy(fit)):
        with pytest.raises(InputError, match=rf"{kind.__name__} is not fitted"):
            each(logits)
    for use in (lambda: set_calibrator(network, fit), lambda: LeftOut([fit], STRUCTURES)):
        with pytest.raises(InputError, match="is not fitted"):
            use()
    fit.compute()
    loaded = kind()
    loaded.load_state_dict(fit.state_dict())
    set_calibrator(network, fit)
    for each in (loaded, copy.deepcopy(fit), fit.with_state(fit.state()), network):
        torch.testing.assert_close(each(logits), fit(logits))


def test_probabilities_are_found_among_the_voxels_that_count() -> None:
    (_, logits, label), *_ = made_cases(1)
    p, fit = logits.softmax(1), TemperatureScaling(ignore_index=IGNORED)
    label[..., :2] = IGNORED
    for value in (0.0, torch.nan):
        p[..., :2] = value
        with pytest.raises(InputError, match="they are probabilities"):
            fit.update(p, label, "patient")
    with pytest.raises(InputError, match="no voxels"):
        fit.compute()
