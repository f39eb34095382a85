"""Volumes on which float32 sums fail: exact here, next to what `monai.metrics` reads on the same input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai import metrics as monai_metrics

from calib_components.metrics import CalibrationBins, calibration_bins


def brute_force_error(confidence: torch.Tensor, hit: torch.Tensor, num_bins: int = 15) -> float:
    """ECE by its definition, bins `(lo, hi]`, in float64."""
    p, event = confidence.double().numpy(), hit.double().numpy()
    index = np.digitize(p, np.arange(num_bins + 1) / num_bins, right=True).clip(1, num_bins) - 1
    error = 0.0
    for i in range(num_bins):
        inside = index == i
        if inside.any():
            error += inside.mean() * abs(p[inside].mean() - event[inside].mean())
    return error


def error_of_second_class(p: torch.Tensor, hit: torch.Tensor) -> float:
    """Ours, of the probability `p` of class 1 where `hit` says whether it is true."""
    probabilities = torch.stack([1 - p, p]).unsqueeze(0)
    bins = calibration_bins(probabilities, hit[None, None], foreground_only=False, classwise=True)
    return CalibrationBins(bins.count[:, 1], bins.confidence[:, 1], bins.accuracy[:, 1]).expected_error().item()


def monai_error(p: torch.Tensor, hit: torch.Tensor) -> float | None:
    """MONAI's, in the releases that have the metric."""
    if not hasattr(monai_metrics, "CalibrationErrorMetric"):
        return None
    metric = monai_metrics.CalibrationErrorMetric(num_bins=15, right=False)
    return metric(p[None, None], hit[None, None].float()).item()


def test_calibrated_predictor_on_a_whole_brain() -> None:
    """240 x 240 x 155, logits from N(3, 2), outcomes drawn with that probability: the error is near 0."""
    generator = torch.Generator().manual_seed(0)
    p = (3 + 2 * torch.randn(240, 240, 155, generator=generator)).sigmoid()
    hit = torch.rand(p.shape, generator=generator) < p
    expected = brute_force_error(p.flatten(), hit.flatten())
    assert expected < 0.0005
    assert error_of_second_class(p, hit) == pytest.approx(expected, abs=1e-9)
    theirs = monai_error(p, hit)
    assert theirs is None or theirs > 0.005


def test_forty_million_voxels_in_one_bin() -> None:
    p = torch.full((40_000_000,), 0.925)
    hit = torch.zeros(p.shape, dtype=torch.bool)
    hit[: len(p) // 100 * 85] = True
    expected = abs(p[0].double().item() - 0.85)
    assert error_of_second_class(p, hit) == pytest.approx(expected, abs=1e-9)
    theirs = monai_error(p, hit)
    assert theirs is None or abs(theirs - expected) > 0.05
