"""Smooth ECE, and the authors' code."""

from __future__ import annotations

import numpy as np
import pytest
import relplot
import torch
from numpy.typing import NDArray

from calib_components.errors import InputError
from calib_components.metrics import calibration_bins, smooth_calibration_error

Array = NDArray[np.float64]


def as_input(confidence: Array, correct: Array) -> tuple[torch.Tensor, torch.Tensor]:
    """One case in which class 1 is predicted with these confidences, above 0.5."""
    p = torch.from_numpy(confidence)
    return torch.stack([1 - p, p])[None], torch.from_numpy(correct).long()[None, None]


def smooth_error(confidence: Array, correct: Array) -> float:
    bins = calibration_bins(*as_input(confidence, correct), num_bins=1920, region="all")
    return smooth_calibration_error(bins).item()


def draw(kind: str, number: int) -> tuple[Array, Array]:
    """Confidences of a calibrated or overconfident prediction, evenly spread over (0.5, 1) or near
    1 like a network's.

    Of those near 1, two thirds are above 0.95.
    """
    rng = np.random.default_rng(0)
    spread, calibration = kind.split()
    p = (
        rng.uniform(0.5, 1, number)
        if spread == "even"
        else 1 / (1 + np.exp(-rng.gamma(4, 1, number)))
    )
    power = {"calibrated": 1.0, "overconfident": 0.6}[calibration]
    truth = p**power / (p**power + (1 - p) ** power)
    return p, (rng.uniform(size=number) < truth).astype(float)


KINDS = ["even calibrated", "even overconfident", "high calibrated", "high overconfident"]


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_authors(kind: str) -> None:
    """Their widths are multiples of 1 / 1024, and their integral a sum over 200 points."""
    confidence, correct = draw(kind, 20_000)
    confidence = confidence.clip(max=0.998)  # they count confidences of 1 by half
    assert smooth_error(confidence, correct) == pytest.approx(
        relplot.smECE(confidence, correct), abs=5e-4
    )


def test_cases_and_pooled() -> None:
    parts = [draw(kind, 1000) for kind in KINDS[:2]]
    inputs = zip(*(as_input(*part) for part in parts), strict=True)
    bins = calibration_bins(*map(torch.cat, inputs), num_bins=1920, region="all")
    expected = [smooth_error(*part) for part in parts]
    assert smooth_calibration_error(bins).tolist() == pytest.approx(expected, abs=1e-12)
    together = smooth_error(*(np.concatenate(values) for values in zip(*parts, strict=True)))
    assert smooth_calibration_error(bins.pooled()).item() == pytest.approx(together, abs=1e-12)


def test_errors() -> None:
    case = as_input(*draw(KINDS[0], 100))
    for options in ({}, {"num_bins": 1920, "classwise": True}):
        with pytest.raises(InputError, match="at least 1000 top-label bins"):
            smooth_calibration_error(calibration_bins(*case, **options))
