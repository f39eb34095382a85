from __future__ import annotations

import numpy as np
import pytest
import torch

from calib_components.metrics import ExpectedDSCMetric, dice, expected_dsc


def test_by_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    y_pred = (3 * torch.randn(2, 4, 9, 8, 7, generator=generator)).softmax(1)
    p, predicted = y_pred.double().numpy(), y_pred.numpy().argmax(1)
    expected = np.empty((2, 2))
    for number, classes in enumerate([(1,), (2, 3)]):
        mask, of_structure = np.isin(predicted, classes), p[:, classes].sum(1)
        overlap, total = (of_structure * mask).sum((1, 2, 3)), of_structure.sum((1, 2, 3))
        expected[:, number] = 2 * overlap / (mask.sum((1, 2, 3)) + total)
    structures = {"a": [1], "bc": [2, 3]}
    np.testing.assert_allclose(expected_dsc(y_pred, structures), expected, rtol=1e-12)
    metric = ExpectedDSCMetric(structures)
    metric(y_pred, torch.randint(4, (2, 1, 9, 8, 7)))  # whatever the ground truth
    np.testing.assert_allclose(metric.aggregate("none"), expected, rtol=1e-12)
    assert metric.aggregate().item() == pytest.approx(expected.mean())


def test_estimates_the_dice_of_drawn_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(1, 1, 40, 40, generator=generator, dtype=torch.float64) ** 2
    estimate = expected_dsc(p, {"a": [0]}).item()
    labels = torch.rand(400, 1, 40, 40, generator=generator, dtype=torch.float64) < p
    found = dice((p > 0.5).expand(400, -1, -1, -1), labels)
    assert found.mean().item() == pytest.approx(estimate, abs=0.002)


def test_is_the_dice_of_certain_predictions() -> None:
    label = torch.randint(3, (1, 1, 9, 9), generator=torch.Generator().manual_seed(0))
    certain = torch.nn.functional.one_hot(label[:, 0], 3).movedim(-1, 1).double().clamp(1e-3, 0.998)
    values = expected_dsc(certain, {"a": [1], "b": [2]})
    assert (values > 0.99).all()


def test_half_is_not_above_half() -> None:
    p = torch.tensor([[[0.5, 0.75, 0.25]]])
    assert expected_dsc(p, {"a": [0]}).item() == pytest.approx(2 * 0.75 / (1 + 1.5))


def test_structures_that_are_not_predicted() -> None:
    y_pred = torch.tensor([[[0.5, 0.75], [0.25, 0.25], [0.25, 0.0], [0.0, 0.0]]])
    values = expected_dsc(y_pred, {"possible": [1, 2], "impossible": [3]})
    assert values[0, 0].item() == 0
    assert values[0, 1].isnan()


def test_order_of_cases_is_that_of_the_dice() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 1, 30, 30, generator=generator) * torch.linspace(0.5, 8, 8)[:, None, None, None] - 0.5
    p = logits.sigmoid()
    labels = torch.rand(p.shape, generator=generator) < p
    found, estimate = dice(p > 0.5, labels)[:, 0], expected_dsc(p, {"a": [0]})[:, 0]
    assert found.argsort().tolist() == estimate.argsort().tolist()


def test_wrong_input() -> None:
    with pytest.raises(TypeError, match=r"^y_pred: expected a torch\.Tensor, got list$"):
        expected_dsc([[0.5]], {"a": [0]})  # type: ignore[arg-type]
    for shape in ((), (3,), (1, 2)):
        with pytest.raises(ValueError, match=r"^y_pred: expected shape \(B, N, \*S\)"):
            expected_dsc(torch.rand(shape), {"a": [0]})
    with pytest.raises(ValueError, match=r"^y_pred: expected probabilities that sum to 1"):
        expected_dsc(torch.full((1, 2, 3), 0.7), {"a": [1]})
    with pytest.raises(ValueError, match=r"^ignore_index: expected None without y, got 0$"):
        expected_dsc(torch.full((1, 2, 3), 0.5), {"a": [1]}, ignore_index=0)
