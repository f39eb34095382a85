"""NLL and Brier score by scikit-learn and by hand, and magnitudes of logits by numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn

from calib_components.errors import InputError
from calib_components.metrics import BrierMetric, NLLMetric, Region, logit_magnitude_sums
from calib_components.metrics.measuring import measure_regions

P1 = torch.tensor([0.000, 0.25, 0.50, 0.625, 1.0, 0.875])  # probability of class 1 of two
Y_PRED = torch.stack([1 - P1, P1])[None]
Y = torch.tensor([0, 1, 1, 1, 1, 0]).view(1, 1, -1)
TRUE_P = np.array([1.0, 0.25, 0.5, 0.625, 1.0, 0.125])


def nll(y_pred: torch.Tensor, y: torch.Tensor, region: str = "foreground") -> float:
    metric = NLLMetric(region=region)
    metric(y_pred, y)
    return metric.aggregate().item()


def brier(y_pred: torch.Tensor, y: torch.Tensor, region: str = "foreground") -> float:
    metric = BrierMetric(region=region)
    metric(y_pred, y)
    return metric.aggregate().item()


def test_values_by_hand() -> None:
    assert nll(Y_PRED, Y, region="all") == pytest.approx(-np.log(TRUE_P).mean())
    assert nll(Y_PRED, Y) == pytest.approx(-np.log(TRUE_P[1:5]).mean())
    assert brier(Y_PRED, Y, region="all") == pytest.approx((2 * (1 - TRUE_P) ** 2).mean())
    assert brier(Y_PRED, Y) == pytest.approx((2 * (1 - TRUE_P[1:5]) ** 2).mean())


def test_values_by_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    y_pred = (2 * torch.randn(1, 4, 500, generator=generator, dtype=torch.float64)).softmax(1)
    y = torch.randint(4, (1, 1, 500), generator=generator)
    p, label = y_pred[0].T.numpy(), y[0, 0].numpy()
    assert nll(y_pred, y, region="all") == pytest.approx(sklearn.log_loss(label, p))
    two, is_1 = torch.stack([1 - y_pred[:, 1], y_pred[:, 1]], 1), y == 1
    of_class = sklearn.brier_score_loss(is_1[0, 0].numpy(), p[:, 1])
    assert brier(two, is_1, region="all") == pytest.approx(2 * of_class)


@pytest.mark.filterwarnings("ignore:y_pred holds only 0 and 1")
def test_a_probability_of_zero_has_a_finite_nll() -> None:
    impossible = torch.tensor([1.0, 0.0]).view(1, 2, 1)
    assert nll(impossible, torch.ones(1, 1, 1)) == pytest.approx(87.336, abs=1e-3)
    assert nll(impossible.half(), torch.ones(1, 1, 1)) == pytest.approx(25 * math.log(2))
    # Of a sigmoid; the largest number below 1 is 2^-11 or 2^-8 less.
    for dtype, bits in ((torch.float16, 12), (torch.bfloat16, 9)):
        certain = torch.ones(1, 1, 1, dtype=dtype)
        assert nll(certain, 0 * certain, "all") == pytest.approx(bits * math.log(2))


def test_probabilities_that_were_rounded_count_as_what_they_can_have_been() -> None:
    def measure(p: torch.Tensor, y: torch.Tensor, sigmoid: bool) -> list[float]:
        options = {"sigmoid": sigmoid, "lowest": 0.01, "highest": 0.9}
        (found,) = measure_regions(p, y, [Region("all")], ["nll", "brier"], **options)
        return [value.item() for value in found.scores.values()]

    p, y = torch.tensor([[[0.0, 1.0, 1.0, 0.95, 0.5]]]), torch.tensor([[[1, 0, 1, 0, 1]]])
    expected = -(math.log(0.01) + 2 * math.log(0.1) + math.log(1) + math.log(0.5)) / 5
    assert measure(p, y, True) == pytest.approx([expected, 2 * (1 + 1 + 0.95**2 + 0.5**2) / 5])
    p = torch.tensor([[[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]]])  # a softmax has no highest probability
    assert measure(p, torch.tensor([[[1, 1, 1]]]), False)[0] == pytest.approx(-(math.log(0.01) + math.log(0.5)) / 3)


def test_magnitudes_of_logits_by_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 3, 5, 6, generator=generator)
    y = torch.randint(3, (2, 1, 5, 6), generator=generator)
    y[0, 0, 0] = 255
    sums, count = logit_magnitude_sums(logits, y, ignore_index=255)
    for case in range(2):
        magnitudes, label = logits[case].abs().double().numpy(), y[case, 0].numpy()
        for k in range(3):
            np.testing.assert_allclose(sums[case, k], magnitudes[:, label == k].sum(1))
            assert count[case, k] == (label == k).sum()
    for spoiled in (logits * torch.nan, logits.long()):
        with pytest.raises(InputError, match="logits"):
            logit_magnitude_sums(spoiled, y, ignore_index=255)
    with pytest.raises(InputError, match="y must hold class indices"):
        logit_magnitude_sums(logits, y)
