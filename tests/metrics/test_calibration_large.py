"""Volumes on which float32 sums fail: exact here, in a few MiB, against what `monai.metrics` reads on the same input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from calib_components.metrics import CalibrationBins, calibration, calibration_bins

monai_metrics = pytest.importorskip("monai.metrics")


def brute_force_error(confidence: torch.Tensor, hit: torch.Tensor, num_bins: int = 15) -> float:
    """ECE in float64 numpy, bins `(lo, hi]`."""
    p, event = confidence.double().numpy(), hit.double().numpy()
    index = np.digitize(p, np.arange(num_bins + 1) / num_bins, right=True).clip(1, num_bins) - 1
    error = 0.0
    for i in range(num_bins):
        inside = index == i
        if inside.any():
            error += inside.mean() * abs(p[inside].mean() - event[inside].mean())
    return error


def error_of_class(bins: CalibrationBins, k: int) -> float:
    return CalibrationBins(bins.count[:, k], bins.confidence[:, k], bins.accuracy[:, k]).expected_error().item()


def monai_error(confidence: torch.Tensor, hit: torch.Tensor, num_bins: int = 15) -> float:
    if not hasattr(monai_metrics, "CalibrationErrorMetric"):
        pytest.skip("this MONAI has no CalibrationErrorMetric")
    metric = monai_metrics.CalibrationErrorMetric(num_bins=num_bins, right=False)
    return metric(confidence[None, None], hit[None, None].float()).item()
