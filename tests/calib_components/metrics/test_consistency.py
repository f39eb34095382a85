"""Consistency bands and resampled errors against the binomial distribution."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from calib_components.metrics import CalibrationBins, consistency_bands, resampled_errors

COUNT = torch.tensor([[10, 0, 400, 100_000], [25, 7, 1, 2_000_000]])
CONFIDENCE = torch.tensor([[0.2, 0.5, 0.61, 0.93], [0.1, 0.34, 0.7, 1.0]], dtype=torch.float64)
BINS = CalibrationBins(COUNT, COUNT * CONFIDENCE, torch.zeros(2, 4, dtype=torch.float64))


def test_bands_are_binomial_quantiles() -> None:
    low, high = consistency_bands(BINS, level=0.9, draws=20_000)
    assert low.isnan().tolist() == high.isnan().tolist() == (COUNT == 0).tolist()
    for i, j in (COUNT > 0).nonzero().tolist():
        n, p = COUNT[i, j].item(), CONFIDENCE[i, j].item()
        for found, q in ((low, 0.05), (high, 0.95)):
            # The quantile itself is known up to the probabilities that 20 000 draws leave open.
            around = stats.binom.ppf([q - 0.01, q + 0.01], n, p) / n
            assert around[0] <= found[i, j].item() <= around[1]


def test_bands_are_the_same_for_the_same_seed_and_follow_the_level() -> None:
    first, again, other = (torch.stack(consistency_bands(BINS, draws=50, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first.nan_to_num(), again.nan_to_num())
    assert not torch.equal(first.nan_to_num(), other.nan_to_num())
    narrow, wide = (consistency_bands(BINS, level) for level in (0.5, 0.99))
    inside = (wide[0] <= narrow[0]) & (narrow[1] <= wide[1])
    assert inside[COUNT > 0].all()


def test_resampled_errors_are_those_of_drawn_labels() -> None:
    errors = resampled_errors(BINS, draws=4000)
    assert errors.shape == (2, 4000)
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


def test_classwise_and_empty_bins() -> None:
    classwise = CalibrationBins(*(field[None] for field in vars(BINS).values()))
    low, _ = consistency_bands(classwise, draws=20)
    assert low.shape == (1, 2, 4)
    assert resampled_errors(classwise, draws=20).shape == (1, 20)
    empty = CalibrationBins(*(field * 0 for field in vars(BINS).values()))
    assert resampled_errors(empty, draws=3).isnan().all()
    assert torch.stack(consistency_bands(empty, draws=3)).isnan().all()
