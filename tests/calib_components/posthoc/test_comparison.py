"""Calibrators on patients that are left out of their fits, by NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from calib_components.posthoc import ClassTemperature, LeftOut, TemperatureScaling
from tests.calib_components.posthoc.test_class_temperature import fitted, made_cases

STRUCTURES = {"one": [1], "two": [2, 3]}
IGNORED = 9


def test_errors_are_those_of_the_definitions() -> None:
    cases = made_cases()
    cases[1] = ("patient0", *cases[1][1:])  # two scans of a patient
    cases[0][2][..., :2] = IGNORED
    fit = fitted(TemperatureScaling, cases, ignore_index=IGNORED)
    fit.compute()
    left_out = LeftOut([fit], STRUCTURES, IGNORED)
    errors: dict[str, list] = {}
    for name, logits, label in cases:
        by_name = left_out.calibrated(logits, name)
        left_out.update({key: each[0] for key, each in by_name.items()}, label[0], name)
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
    found = left_out.table().loc["temperature"]
    assert [*found.index] == ["nll", "gap one", "gap two", "bias"]
    assert [*found] == pytest.approx(np.mean(rows, 0), rel=1e-4, abs=1e-5)


def test_the_simplest_that_is_not_worse_is_chosen() -> None:
    """Of logits that are off by a factor of the class, of one factor, and of none."""
    for factors, expected in (
        ([0.5, 1.0, 2.0, 3.0], "class_temperature"),
        ([2.0] * 4, "temperature"),
        ([1.0] * 4, "none"),
    ):
        cases = made_cases(20, factors=factors)
        fits = [fitted(kind, cases) for kind in (TemperatureScaling, ClassTemperature)]
        for fit in fits:
            fit.compute()
        left_out = LeftOut(fits, STRUCTURES)
        for name, logits, label in cases:
            by_name = left_out.calibrated(logits, name)
            left_out.update({key: each[0] for key, each in by_name.items()}, label[0], name)
        assert left_out.choice() == expected
        assert left_out.describe().endswith(f": {expected}")
