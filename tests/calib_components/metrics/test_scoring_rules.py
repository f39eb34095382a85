from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from calib_components.metrics import brier_score, negative_log_likelihood

P1 = torch.tensor([0.000, 0.25, 0.50, 0.625, 1.0, 0.875])  # probability of class 1 of two
Y_PRED = torch.stack([1 - P1, P1])[None]
Y = torch.tensor([0, 1, 1, 1, 1, 0]).view(1, 1, -1)
TRUE_P = np.array([1.0, 0.25, 0.5, 0.625, 1.0, 0.125])


def test_values_by_hand() -> None:
    nll = negative_log_likelihood(Y_PRED, Y, foreground_only=False)
    assert nll.item() == pytest.approx(-np.log(TRUE_P).mean())
    assert negative_log_likelihood(Y_PRED, Y).item() == pytest.approx(-np.log(TRUE_P[1:5]).mean())
    assert brier_score(Y_PRED, Y, foreground_only=False).item() == pytest.approx((2 * (1 - TRUE_P) ** 2).mean())
    assert brier_score(Y_PRED, Y).item() == pytest.approx((2 * (1 - TRUE_P[1:5]) ** 2).mean())


@pytest.mark.filterwarnings("ignore:y_pred. expected probabilities, got only 0 and 1")
def test_a_probability_of_zero_has_a_finite_nll() -> None:
    impossible = torch.tensor([1.0, 0.0]).view(1, 2, 1)
    assert negative_log_likelihood(impossible, torch.ones(1, 1, 1)).item() == pytest.approx(87.336, abs=1e-3)
    assert negative_log_likelihood(impossible.half(), torch.ones(1, 1, 1)).item() == pytest.approx(25 * math.log(2))
    # Of a sigmoid; the largest number below 1 is 2^-11 or 2^-8 less.
    for dtype, bits in ((torch.float16, 12), (torch.bfloat16, 9)):
        certain = torch.ones(1, 1, 1, dtype=dtype)
        assert negative_log_likelihood(certain, 0 * certain, False).item() == pytest.approx(bits * math.log(2))


def test_case_without_foreground_is_nan() -> None:
    y_pred, y = Y_PRED.repeat(2, 1, 1), torch.cat([Y, torch.zeros_like(Y)])
    for score in (negative_log_likelihood(y_pred, y), brier_score(y_pred, y)):
        assert score.shape == (2,)
        assert score.isnan().tolist() == [False, True]
