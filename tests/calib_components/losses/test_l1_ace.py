"""L1 average calibration error, alone and beside cross-entropy and Dice."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss

from calib_components.losses import L1ACEDiceCELoss, L1ACELoss
from calib_components.metrics import calibration_bins

SHAPES = [(2, 4, 9, 8), (2, 3, 4, 5, 6)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
HALVES = L1ACELoss(num_bins=2)


def example(shape: tuple[int, ...], absent: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Overconfident logits in float64, and class indices `(B, 1, *S)` without the last classes."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return logits, torch.randint(shape[1] - absent, (shape[0], 1, *shape[2:]), generator=generator)


def logits_of(second_class: list[float]) -> torch.Tensor:
    """Logits of two classes `(1, 2, 1, voxels)` with these probabilities of the second."""
    p = torch.tensor(second_class, dtype=torch.float64)
    return torch.stack([torch.zeros_like(p), (p / (1 - p)).log()])[None, :, None]


def l1_ace(logits: np.ndarray, labels: np.ndarray, num_bins: int, ignored: int, ignore_empty_classes: bool) -> float:
    """The definition: one probability after the other."""
    errors = []
    for image, truth in zip(logits, labels[:, 0], strict=True):
        for k in range(len(image)):
            bins: dict[int, list[tuple[float, int]]] = {}
            for voxel in np.ndindex(truth.shape):
                if truth[voxel] != ignored:
                    odds = [math.exp(z) for z in image[(slice(None), *voxel)]]
                    p = odds[k] / sum(odds)
                    bins.setdefault(min(int(p * num_bins), num_bins - 1), []).append((p, int(truth[voxel] == k)))
            gaps = [abs(np.mean([p for p, _ in pairs]) - np.mean([y for _, y in pairs])) for pairs in bins.values()]
            counts = not ignore_empty_classes or (truth == k).any()
            errors.append(np.mean(gaps) if counts else 0.0)
    return float(np.mean(errors))


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


def test_one_bin_compares_the_frequency_of_each_class() -> None:
    logits, labels = example(SHAPES[0])
    frequency = F.one_hot(labels[:, 0], 4).double().mean((1, 2))
    expected = (logits.softmax(1).mean((2, 3)) - frequency).abs().mean()
    torch.testing.assert_close(L1ACELoss(num_bins=1)(logits, labels), expected)


@every_shape
@pytest.mark.parametrize("ignore_empty_classes", [True, False])
@pytest.mark.parametrize("num_bins", [3, 20])
def test_value_and_gradient_equal_the_definition(
    shape: tuple[int, ...], ignore_empty_classes: bool, num_bins: int
) -> None:
    logits, labels = example(shape, absent=1)
    labels[0, :, :2] = 9
    options = num_bins, 9, ignore_empty_classes
    logits.requires_grad_()
    value = L1ACELoss(num_bins, ignore_empty_classes, ignore_index=9)(logits, labels)
    value.backward()
    z, truth = logits.detach().numpy(), labels.numpy()
    assert value.item() == pytest.approx(l1_ace(z, truth, *options), rel=1e-12)
    for index in ((0, 0, 3, 2), (1, 1, 0, 1), (1, shape[1] - 1, 2, 4), (0, 1, 0, 0)):
        voxel = (*index, *[1] * (len(shape) - 4))
        step = np.zeros(shape)
        step[voxel] = 1e-6
        derivative = (l1_ace(z + step, truth, *options) - l1_ace(z - step, truth, *options)) / 2e-6
        assert logits.grad[voxel].item() == pytest.approx(derivative, abs=1e-9)


@every_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("absent", [0, 1])
def test_value_equals_the_metric(shape: tuple[int, ...], dtype: torch.dtype, absent: int) -> None:
    logits, labels = example(shape, absent)
    logits, labels[0, 0, 0, 0] = logits.to(dtype), 9
    bins = calibration_bins(logits.softmax(1), labels, 20, region="all", ignore_index=9, classwise=True)
    value = L1ACELoss(ignore_empty_classes=False, ignore_index=9)(logits, labels)
    torch.testing.assert_close(value, bins.average_error().mean().to(dtype))


def test_probabilities_as_target() -> None:
    """Two voxels of one bin: mean of the predicted, 1/4, minus mean of the given, 3/10."""
    target = torch.tensor([[0.8, 0.6], [0.2, 0.4]])[None, :, None]
    assert HALVES(logits_of([1 / 4, 1 / 4]), target).item() == pytest.approx(0.05)


@pytest.mark.parametrize("loss", [L1ACELoss(), L1ACEDiceCELoss()], ids=repr)
def test_training_steps_lower_the_error_of_overconfident_logits(loss: Callable) -> None:
    logits, _ = example((2, 4, 32, 32))
    labels = torch.distributions.Categorical(logits=(logits / 2).movedim(1, -1)).sample()
    logits.requires_grad_()
    before = L1ACELoss()(logits, labels).item()
    optimizer = torch.optim.Adam([logits], 0.05)
    for _ in range(10):
        optimizer.zero_grad()
        loss(logits, labels).backward()
        optimizer.step()
    assert L1ACELoss()(logits, labels).item() < 0.8 * before


@every_shape
def test_combination_is_dice_ce_of_monai_plus_the_weighted_error(shape: tuple[int, ...]) -> None:
    logits, labels = example(shape, absent=1)
    dice_ce = DiceCELoss(to_onehot_y=True, softmax=True)(logits, labels)
    torch.testing.assert_close(L1ACEDiceCELoss(penalty_weight=0.0)(logits, labels), dice_ce)
    expected = dice_ce + 0.3 * L1ACELoss(7, False)(logits, labels)
    torch.testing.assert_close(L1ACEDiceCELoss(0.3, 7, False)(logits, labels), expected)
