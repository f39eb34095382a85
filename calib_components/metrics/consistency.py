"""Consistency resampling: how far bins of calibrated probabilities are from the diagonal by chance.

If the probabilities are calibrated, each prediction in a bin is correct with the probability that it states, so that
the number of correct ones is about binomial with the count and mean confidence of the bin. This supposes independent
voxels; those of one image are not, so bands are too narrow and resampled errors too small.

Source: Broecker and Smith, "Increasing the Reliability of Reliability Diagrams", Weather and Forecasting 22, 2007.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from calib_components.arguments import check_count, check_number
from calib_components.metrics.bins import CalibrationBins

__all__ = ["consistency_bands", "resampled_errors"]


def consistency_bands(
    bins: CalibrationBins, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Range of the accuracy of each bin that is expected by chance if the probabilities are calibrated.

    Meant for regions chosen by the prediction; in others, calibrated probabilities are not on the diagonal.

    Shape:
        - output: two tensors of the shape of the bins, `(B, num_bins)` or `(B, N, num_bins)`.

    Args:
        bins: Observed bins, with whole counts.
        level: Probability of the range.
        draws: How often labels are drawn.
        seed: Seed of the draws.

    Returns:
        Lower and upper quantiles of the accuracy, float64; NaN where the bin is empty.

    Raises:
        TypeError: `bins` is no `CalibrationBins`.
        ValueError: Counts are not whole numbers, or an option has an unsuitable value.

    Examples:
        >>> import torch
        >>> from calib_components.metrics import CalibrationBins, consistency_bands
        >>> confidence_sum = torch.tensor([[2000.0, 900.0]], dtype=torch.float64)
        >>> bins = CalibrationBins(torch.tensor([[10_000, 1000]]), confidence_sum, confidence_sum)
        >>> low, high = consistency_bands(bins)
        >>> [[round(value, 2) for value in row] for row in (low[0].tolist(), high[0].tolist())]
        [[0.19, 0.88], [0.21, 0.92]]
    """
    check_number("level", level, 0, 1)
    accuracies = torch.stack([drawn.accuracy for drawn in _drawn(bins, draws, seed)])
    tail = (1 - level) / 2
    low, high = accuracies.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64, device=accuracies.device), 0)
    return low, high


def resampled_errors(bins: CalibrationBins, draws: int = 1000, seed: int = 0) -> torch.Tensor:
    """Expected calibration errors if labels are drawn from the mean confidence of each bin: what chance alone gives.

    Shape:
        - output: `(B, draws)`.

    Args:
        bins: Observed bins, with whole counts; classwise bins give the mean over classes.
        draws: How often labels are drawn.
        seed: Seed of the draws.

    Returns:
        Float64; NaN for a case without voxels.

    Raises:
        TypeError: `bins` is no `CalibrationBins`.
        ValueError: Counts are not whole numbers, or an option has an unsuitable value.

    Examples:
        >>> import torch
        >>> from calib_components.metrics import CalibrationBins, resampled_errors
        >>> confidence_sum = torch.tensor([[500.0]], dtype=torch.float64)
        >>> bins = CalibrationBins(torch.tensor([[1000]]), confidence_sum, confidence_sum)
        >>> errors = resampled_errors(bins)  # of 1000 tosses of a coin: sqrt(0.25 / 1000) * sqrt(2 / pi)
        >>> errors.shape, round(errors.mean().item(), 2)
        (torch.Size([1, 1000]), 0.01)
    """
    return torch.stack([drawn.expected_error() for drawn in _drawn(bins, draws, seed)], 1)


def _drawn(bins: CalibrationBins, draws: int, seed: int) -> Iterator[CalibrationBins]:
    check_count("draws", draws, 1)
    check_count("seed", seed, 0, 2**64 - 1)  # those that PyTorch takes
    if not isinstance(bins, CalibrationBins):
        raise TypeError(f"bins: expected CalibrationBins, got {type(bins).__name__}")
    if bins.count.is_floating_point():
        raise ValueError(f"bins: expected whole counts, got {bins.count.dtype}: give the observed bins")
    generator = torch.Generator(bins.count.device).manual_seed(seed)
    count, probability = bins.count.double(), bins.confidence.nan_to_num().clamp(0, 1)
    for _ in range(draws):
        yield CalibrationBins(bins.count, bins.confidence_sum, torch.binomial(count, probability, generator))
