"""Adaptive ECE in constant memory, next to its definition with all voxels sorted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from calib_components.metrics import adaptive_calibration_error
from tests.calib_components.metrics.test_bins_large import LargestTensor


def sorted_error(confidence: NDArray, correct: NDArray, num_bins: int) -> float:
    """Edges interpolated between sorted confidences, bins `(lo, hi]`; the mean of the lowest ones is left out once."""
    number = len(confidence)
    edges = np.interp(np.arange(num_bins) * number / num_bins, np.arange(number), np.sort(confidence))
    index = np.searchsorted(edges[1:], confidence)
    residual = confidence - correct
    sums = np.bincount(index, residual, num_bins)
    sums[0] -= residual[confidence == edges[0]].mean()
    return np.abs(sums).sum() / number


@pytest.mark.parametrize("num_bins", [1, 2, 15, 1000, 10_000])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])  # from nearly equal confidences to many that are exactly 1
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])  # few values, so many are equal
def test_equals_its_definition(num_bins: int, scale: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    y_pred = (scale * torch.randn(2, 3, 3000, generator=generator)).softmax(1).to(dtype)
    y = torch.randint(3, (2, 1, 3000), generator=generator)
    confidence, predicted = y_pred.double().max(1)
    correct = (predicted == y[:, 0]).double()
    expected = [sorted_error(*case, num_bins) for case in zip(confidence.numpy(), correct.numpy(), strict=True)]
    errors = adaptive_calibration_error(y_pred, y, num_bins, region="all")
    assert errors.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("num_bins", [15, 10_000])
def test_memory_does_not_grow_with_the_volume(num_bins: int) -> None:
    largest = []
    for size in (32, 64):
        y_pred = torch.rand(1, 2, size, size, size).softmax(1)
        y = torch.ones(1, 1, size, size, size, dtype=torch.uint8)
        with LargestTensor(y_pred, y) as created:
            adaptive_calibration_error(y_pred, y, num_bins)
        largest.append(created.bytes)
    assert largest[0] == largest[1] <= 2**24


def test_invalid_values_of_all_cases_are_in_one_error() -> None:
    y_pred = torch.full((3, 2, 4), 0.5)
    y_pred[1:, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"^y_pred: .* got 2 of 24 values that are NaN"):
        adaptive_calibration_error(y_pred, torch.ones(3, 1, 4))


def test_voxels_to_leave_out_and_sigmoids() -> None:
    generator = torch.Generator().manual_seed(0)
    y_pred = (2 * torch.randn(1, 3, 3000, generator=generator)).softmax(1)
    y = torch.randint(3, (1, 1, 3000), generator=generator)
    kept = y[0, 0] != 2
    torch.testing.assert_close(
        adaptive_calibration_error(y_pred, y, region="all", ignore_index=2),
        adaptive_calibration_error(y_pred[:, :, kept], y[:, :, kept], region="all"),
    )
    channels, labels = y_pred[:, 1:3], torch.cat([y == 1, y == 2], 1).int()
    torch.testing.assert_close(
        adaptive_calibration_error(channels, labels, region="all", sigmoid=True),
        adaptive_calibration_error(channels.reshape(1, 1, -1), labels.reshape(1, 1, -1), region="all"),
    )
