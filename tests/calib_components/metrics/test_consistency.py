"""Consistency bands and resampled errors against the binomial distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from calib_components.errors import InputError
from calib_components.metrics import CalibrationBins, consistency_bands, resampled_errors

COUNT = torch.tensor([[10, 0, 400, 100_000], [25, 7, 1, 2_000_000]])
CONFIDENCE = torch.tensor([[0.2, 0.5, 0.61, 0.93], [0.1, 0.34, 0.7, 1.0]], dtype=torch.float64)
BINS = CalibrationBins(COUNT, COUNT * CONFIDENCE, torch.zeros(2, 4, dtype=torch.float64))


def test_bands_are_binomial_quantiles() -> None:
    low, high = consistency_bands(BINS, level=0.9)
    assert low.isnan().tolist() == high.isnan().tolist() == (COUNT == 0).tolist()
    at = COUNT > 0
    for found, share in ((low[at], 0.05), (high[at], 0.95)):  # the fewest that so large a share does not exceed
        correct = (found * COUNT[at]).round()
        assert (stats.binom.cdf(correct, COUNT[at], CONFIDENCE[at]) >= share).all()
        assert (stats.binom.cdf(correct - 1, COUNT[at], CONFIDENCE[at]) < share).all()


def test_resampled_errors_are_those_of_drawn_labels() -> None:
    errors = resampled_errors(BINS, draws=4000)
    assert errors.shape == (2, 4000)
    assert torch.equal(errors, resampled_errors(BINS, draws=4000))
    assert not torch.equal(errors, resampled_errors(BINS, draws=4000, seed=1))
    for i in range(2):
        n, p = COUNT[i].numpy(), CONFIDENCE[i].numpy()
        # The mean absolute deviation of each binomial; for many voxels, that of the normal distribution.
        deviations = [
            stats.binom(a, b).expect(lambda x, m=a * b: abs(x - m))
            if a < 1000
            else np.sqrt(2 / np.pi * a * b * (1 - b))
            for a, b in zip(n, p, strict=True)
            if a > 0
        ]
        assert abs(errors[i].mean().item() * n.sum() / sum(deviations) - 1) < 0.03


def test_bands_need_observed_bins_and_a_level() -> None:
    with pytest.raises(InputError, match="whole counts"):
        resampled_errors(CalibrationBins(COUNT.double(), BINS.confidence_sum, BINS.num_correct))
    with pytest.raises(InputError, match="level"):
        consistency_bands(BINS, level=95)
