"""Volumes on which float32 sums fail: exact values here, next to those of `monai.metrics` for the same input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai import metrics as monai_metrics
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from calib_components.metrics import CalibrationMetric, NLLMetric, calibration_bins, voxels


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
    """Our error of the probability `p` of class 1, where `hit` says whether the class is true."""
    probabilities = torch.stack([1 - p, p]).unsqueeze(0)
    bins = calibration_bins(probabilities, hit[None, None], foreground_only=False, classwise=True)
    return bins.per_class()[1].expected_error().item()


def monai_error(p: torch.Tensor, hit: torch.Tensor) -> float | None:
    """MONAI's error, in the releases that have the metric."""
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


class LargestTensor(TorchDispatchMode):
    """Records the size in bytes of the largest tensor that is created, views excluded."""

    def __init__(self, *inputs: torch.Tensor) -> None:
        super().__init__()
        self.given = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() not in self.given:
                self.bytes = max(self.bytes, value.untyped_storage().nbytes())
        return result


REGIONS = ["all", "predicted", "plausible", "union", [1], [2], [1, 2], [1, 2, 3]]


@pytest.mark.parametrize(
    "metric",
    [
        CalibrationMetric(),
        CalibrationMetric(foreground_only=False),
        CalibrationMetric(regions=REGIONS, draws=20, temperature=1.5),
        NLLMetric(),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("classes", "size"), [(4, 96), (105, 32)])
def test_memory_does_not_grow_with_the_volume_or_the_regions(
    metric: CalibrationMetric | NLLMetric, dtype: torch.dtype, classes: int, size: int
) -> None:
    metric.reset()
    y_pred = torch.full((1, classes, size, size, size), 1 / classes, dtype=dtype)
    y = torch.ones(1, 1, size, size, size, dtype=torch.uint8)
    with LargestTensor(y_pred, y) as largest:
        metric(y_pred, y)
    assert largest.bytes <= 8 * voxels.ENLARGE * voxels.CPU_CHUNK  # a chunk of float64
