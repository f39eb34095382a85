"""L1 average calibration error: values by hand, and those of the metric. Its formula is in test_losses."""

from __future__ import annotations

import pytest
import torch

from calib_components.losses import L1ACELoss
from calib_components.metrics import calibration_bins
from tests.calib_components.losses.test_losses import SHAPES, example

HALVES = L1ACELoss(num_bins=2)


def logits_of(second_class: list[float]) -> torch.Tensor:
    """Logits of two classes `(1, 2, 1, voxels)` with these probabilities of the second."""
    p = torch.tensor(second_class, dtype=torch.float64)
    return torch.stack([torch.zeros_like(p), (p / (1 - p)).log()])[None, :, None]


def test_value_and_gradient_by_hand() -> None:
    """Three voxels with 3/4 of class 1, two of which are of it, and one with 1/4 that is not: gaps of 1/12 and 1/4."""
    logits = logits_of([3 / 4, 3 / 4, 3 / 4, 1 / 4]).requires_grad_()
    value = HALVES(logits, torch.tensor([[[[1, 1, 0, 0]]]]))
    value.backward()
    assert value.item() == pytest.approx((1 / 12 + 1 / 4) / 2)
    # Of each of two classes, a bin has a half; its voxels share it. The derivative of the softmax is 3/16.
    of_second = 2 * torch.tensor([1 / 12, 1 / 12, 1 / 12, 1 / 4]).double() * 3 / 16
    torch.testing.assert_close(logits.grad[0, :, 0], torch.stack([-of_second, of_second]))


def test_classes_absent_from_an_image_count_as_0_or_with_their_error() -> None:
    logits, labels = logits_of([1 / 4, 1 / 4]), torch.zeros(1, 1, 1, 2)
    assert HALVES(logits, labels).item() == pytest.approx(1 / 8)
    assert L1ACELoss(num_bins=2, ignore_empty_classes=False)(logits, labels).item() == pytest.approx(1 / 4)
    ignored = torch.tensor([[[[0, 1]]]])  # the only voxel of the second class
    assert L1ACELoss(num_bins=2, ignore_index=1)(logits, ignored).item() == pytest.approx(1 / 8)


def test_a_probability_on_an_edge_is_in_the_bin_below() -> None:
    """Class 0, which alone is present, has 1/2, 3/4 and 3/4: gaps of 1/2 and 1/4, or of 1/3 if they shared a bin."""
    value = HALVES(logits_of([1 / 2, 1 / 4, 1 / 4]), torch.zeros(1, 1, 1, 3))
    assert value.item() == pytest.approx((1 / 2 + 1 / 4) / 2 / 2)


@pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_is_that_of_the_metric(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    logits, labels = example(shape)
    logits, labels[0, 0, :2] = logits.to(dtype), 9
    bins = calibration_bins(logits.softmax(1), labels, 20, region="all", ignore_index=9, classwise=True)
    value = L1ACELoss(ignore_empty_classes=False, ignore_index=9)(logits, labels)
    torch.testing.assert_close(value, bins.average_error().mean().to(dtype))
