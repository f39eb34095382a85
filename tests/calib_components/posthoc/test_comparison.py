"""Calibrators on patients that are left out of their fits, by NumPy."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch.nn import functional as F

from calib_components.errors import InputError
from calib_components.posthoc import (
    KINDS,
    Calibrator,
    ClassBias,
    LeftOut,
    TemperatureScaled,
    TemperatureScaling,
    set_calibrator,
)

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


def add(left_out: LeftOut, case: Case) -> None:
    """Add the errors of a scan, by each of the calibrators."""
    name, logits, label = case
    left_out.rows += left_out.rows_of(left_out.calibrated(logits, name), label[0], name)


def test_errors_are_those_of_the_definitions() -> None:
    cases = made_cases()
    cases[1] = ("patient0", *cases[1][1:])  # two scans of a patient
    cases[0][2][..., :2] = IGNORED
    fit = fitted(TemperatureScaling, cases, ignore_index=IGNORED)
    left_out = LeftOut([fit], STRUCTURES, IGNORED)
    errors: dict[str, list] = {}
    for name, logits, label in cases:
        add(left_out, (name, logits, label))
        kept = label[0, 0].numpy() != IGNORED
        t = fit.left_out()[name].state()["temperature"].item()
        values, true = logits[0].numpy()[:, kept] / t, label[0, 0].numpy()[kept]
        nll = -np.take_along_axis(log_softmax(values, 0), true[None], 0).mean()
        p, predicted = softmax(values, 0), values.argmax(0)
        row = [nll]
        for classes in STRUCTURES.values():
            inside, is_true = np.isin(predicted, classes), np.isin(true, classes)
            p_of = p[classes].sum(0)
            expected = 2 * p_of[inside].sum() / (inside.sum() + p_of.sum())
            dsc = 2 * (inside & is_true).sum() / (inside.sum() + is_true.sum())
            row += [p_of[inside].sum(), (inside & is_true).sum(), inside.sum(), expected - dsc]
        errors.setdefault(name, []).append(row)
    rows = []
    for scans in map(np.array, errors.values()):
        gaps = [(scans[:, i].sum() - scans[:, i + 1].sum()) / scans[:, i + 2].sum() for i in (1, 5)]
        rows.append([scans[:, 0].mean(), *gaps, scans[:, [4, 8]].mean()])
    found = left_out.table()["temperature"]
    assert [*found] == ["nll", "gap one", "gap two", "bias"]
    assert [*found.values()] == pytest.approx(np.mean(rows, 0), rel=1e-4, abs=1e-5)


def test_the_simplest_that_is_not_worse_is_chosen() -> None:
    """Of logits that are off by a bias, by a factor, and not at all."""
    for factor, bias, expected in (
        (1.0, (0.0, 1.0, -1.0, 0.5), "bias"),
        (2.0, (0.0,) * 4, "temperature"),
        (1.0, (0.0,) * 4, "none"),
    ):
        cases = made_cases(20, factor, bias)
        fits = [fitted(kind, cases) for kind in (TemperatureScaling, ClassBias)]
        left_out = LeftOut(fits, STRUCTURES)
        for case in cases:
            add(left_out, case)
        assert left_out.choice() == expected
        assert left_out.describe().endswith(f": {expected}")


def test_a_scan_that_is_ignored_as_a_whole_does_not_choose() -> None:
    cases = made_cases(20, factor=2.0)
    fit = fitted(TemperatureScaling, cases, ignore_index=IGNORED)
    left_out = LeftOut([fit], STRUCTURES, IGNORED)
    name, logits, label = cases[0]
    for case in (*cases, (f"{name} again", logits, torch.full_like(label, IGNORED))):
        add(left_out, case)
    assert left_out.choice() == "temperature"


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
