"""More classes than a byte or an int16 can number: counts against plain computations in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from calib_components.metrics import (
    LogitMagnitudeMetric,
    calibration_bins,
    dice,
    negative_log_likelihood,
    structure_masks,
)

CLASSES = 300


@pytest.fixture(scope="module")
def case() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `(1, 300, 25, 20)` and labels of all classes, of which four in ten voxels are predicted correctly."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(500) % CLASSES)
    logits = rng.normal(size=(CLASSES, 500))
    logits[labels[:200], np.arange(200)] += 8
    return torch.tensor(logits).view(1, CLASSES, 25, 20), torch.tensor(labels).view(1, 1, 25, 20)


def test_bins(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, y = case
    y_pred = logits.softmax(1)
    p, label = y_pred[0].flatten(1).numpy(), y.flatten().numpy()

    def bins_of(confidence: np.ndarray, correct: np.ndarray) -> tuple[list[int], list[int]]:
        edges = np.linspace(0, 1, 11)
        return np.histogram(confidence, edges)[0].tolist(), np.histogram(confidence[correct], edges)[0].tolist()

    top = calibration_bins(y_pred, y, 10, foreground_only=False)
    assert (top.count[0].tolist(), top.num_correct[0].tolist()) == bins_of(p.max(0), p.argmax(0) == label)
    classwise = calibration_bins(y_pred, y, 10, foreground_only=False, classwise=True)
    for k in range(CLASSES):
        assert (classwise.count[0, k].tolist(), classwise.num_correct[0, k].tolist()) == bins_of(p[k], label == k)
    nll = negative_log_likelihood(y_pred, y, foreground_only=False)
    assert nll.item() == pytest.approx(-np.log(p[label, np.arange(500)]).mean())


def test_overlap(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, y = case
    predicted = logits.argmax(1)
    one_hot = torch.nn.functional.one_hot(predicted, CLASSES).movedim(-1, 1)
    a, b = predicted.flatten().numpy(), y.flatten().numpy()
    expected = [2 * np.sum((a == k) & (b == k)) / (np.sum(a == k) + np.sum(b == k)) for k in range(CLASSES)]
    np.testing.assert_allclose(dice(one_hot, y)[0], expected)
    masks = structure_masks(y[0].to(torch.int16), [[299], [44, 299]])
    assert masks.flatten(1).sum(1).tolist() == [np.sum(b == 299), np.sum((b == 44) | (b == 299))]


def test_labels_in_a_byte_with_more_classes_than_a_byte_holds() -> None:
    """As uint8, class 300 would be 44, and -1 would be 255."""
    y = torch.tensor([[[44, 255, 0]]], dtype=torch.uint8)
    assert structure_masks(y[0], [[300], [44]]).tolist() == [[False] * 3, [True, False, False]]
    metric = LogitMagnitudeMetric()
    metric(torch.ones(1, 512, 3), y)
    assert metric.magnitudes.nansum(1).nonzero().flatten().tolist() == [0, 44, 255]
    with pytest.raises(ValueError, match="got other values in 1 of 3 voxels"):
        LogitMagnitudeMetric(ignore_index=-1)(torch.ones(1, 100, 3), y)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_unsigned_labels(dtype: torch.dtype) -> None:
    y_pred = torch.eye(CLASSES)[None] * 0.9 + 0.1 / CLASSES
    y = torch.arange(CLASSES).view(1, 1, -1)
    one_hot = torch.eye(CLASSES)[None]
    for labels in (y.to(dtype), one_hot.to(dtype)):
        assert calibration_bins(y_pred, labels, foreground_only=False).num_correct.sum() == CLASSES
    assert structure_masks(y[0].to(dtype), [[299]]).nonzero().tolist() == [[0, 299]]
    assert dice(one_hot, y.to(dtype)).eq(1).all()


def test_the_top_label_of_forty_thousand_classes() -> None:
    y = torch.tensor([[[0, 32_768, 39_999]]])
    y_pred = torch.full((1, 40_000, 3), 0.5 / 39_999)
    y_pred.scatter_(1, y, 0.5)
    assert calibration_bins(y_pred, y, foreground_only=False).num_correct.sum() == 3
