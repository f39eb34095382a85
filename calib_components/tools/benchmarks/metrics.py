"""Times of the metrics over those of MONAI and medpy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import monai.metrics
import torch
import torch.nn.functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from calib_components.metrics import CalibrationMetric, CECEMetric, ECEMetric, hausdorff_distance_95
from calib_components.tools.benchmarks.losses import SHAPES
from calib_components.tools.benchmarks.timing import Step, print_ratios, set_up

__all__ = ["metrics"]

REGIONS = ("all", "predicted", "plausible", "predicted_band", "union", "band")  # and the foreground
# Shape, radii in voxels, and spacing in mm: those of BraTS and ACDC.
STRUCTURES = {
    "tumour core": ((240, 240, 155), (18, 16, 15), (1.0, 1.0, 1.0)),
    "whole tumour": ((240, 240, 155), (48, 40, 38), (1.0, 1.0, 1.0)),
    "left ventricle": ((224, 224, 10), (18, 18, 4), (1.5, 1.5, 10.0)),
}


def _measure(metric: Any, probabilities: torch.Tensor, target: torch.Tensor) -> None:
    metric(probabilities, target)
    metric.aggregate()
    metric.reset()


def _smooth_case() -> tuple[torch.Tensor, torch.Tensor]:
    """Returns smooth probabilities of a volume that is mostly background, and labels drawn from them."""
    logits = F.interpolate(4 * torch.randn(1, 4, 12, 12, 6), (192, 192, 64), mode="trilinear")
    logits[:, 0] += 30 * (torch.linspace(-1, 1, 192).abs() - 0.3)[:, None, None]
    labels = (logits - torch.empty_like(logits).exponential_().log()).argmax(1, keepdim=True)
    return logits.softmax(1), labels


def metrics(device: str = "cpu", rounds: int = 5, threads: int = 2) -> None:
    """Calibration errors of a batch over MONAI's calibration error, and HD95 over medpy's.

    MONAI's calibration error is a classwise one from one-hot labels, torchmetrics' a top-label one. The peak memory is
    that of PyTorch's tensors alone, without NumPy's arrays.

    Args:
        device: where to run, "cpu" or "cuda".
        rounds: how many times each metric is timed.
        threads: CPU threads for PyTorch.
    """
    set_up(rounds, threads)
    cases = [
        ((2 * torch.randn(shape)).softmax(1), torch.randint(shape[1], (shape[0], 1, *shape[2:]))) for shape in SHAPES
    ]
    for title, case in zip((*["random"] * len(SHAPES), "smooth"), (*cases, _smooth_case()), strict=True):
        probabilities, index = (tensor.to(device) for tensor in case)
        num_classes = probabilities.shape[1]
        one_hot = F.one_hot(index[:, 0], num_classes).movedim(-1, 1).float()
        steps: dict[str, Step] = {
            "monai CalibrationErrorMetric": partial(
                _measure, monai.metrics.CalibrationErrorMetric(num_bins=15), probabilities, one_hot
            ),
            "all measures, all regions": partial(_measure, CalibrationMetric(regions=REGIONS), probabilities, index),
            "all measures, all voxels": partial(_measure, CalibrationMetric(region="all"), probabilities, index),
            "all measures, foreground": partial(_measure, CalibrationMetric(), probabilities, index),
            "ECEMetric, all voxels": partial(_measure, ECEMetric(region="all"), probabilities, index),
            "CECEMetric, all voxels": partial(_measure, CECEMetric(region="all"), probabilities, index),
            "torchmetrics calibration_error": partial(
                multiclass_calibration_error, probabilities, index[:, 0], num_classes, n_bins=15
            ),
        }
        print_ratios(f"one batch, {title}, {'x'.join(map(str, probabilities.shape))}", steps, rounds, device)
    for name, (shape, radii, spacing) in STRUCTURES.items():
        y_pred, y = (_structure(shape, radii, shift) for shift in (0, 1))
        for sizes in (None, spacing):
            title = f"HD95, {name}, {'x'.join(map(str, shape))}, {'in voxels' if sizes is None else 'in mm'}"
            print_ratios(title, _hd95_steps(y_pred, y, sizes), rounds, "cpu")


def _structure(shape: Sequence[int], radii: Sequence[int], shift: int) -> torch.Tensor:
    """Returns the mask of a structure with a wavy surface, `(1, 1, *shape)`."""
    offsets = torch.meshgrid(*(torch.arange(size) - size // 2 - shift for size in shape), indexing="ij")
    distance = torch.stack([offset / radius for offset, radius in zip(offsets, radii, strict=True)]).norm(dim=0)
    waves = torch.stack([torch.sin(offset / (4 + shift)) for offset in offsets]).sum(0)
    return (distance + 0.1 * waves < 1)[None, None]


def _hd95_steps(y_pred: torch.Tensor, y: torch.Tensor, spacing: Sequence[float] | None) -> dict[str, Step]:
    steps: dict[str, Step] = {
        "monai compute_hausdorff_distance": partial(
            monai.metrics.compute_hausdorff_distance, y_pred, y, include_background=True, percentile=95, spacing=spacing
        ),
        "hausdorff_distance_95": partial(hausdorff_distance_95, y_pred, y, spacing),
    }
    try:
        from medpy.metric.binary import hd95
    except ImportError:
        print("\nmedpy is not installed: ratios are over MONAI's time")
        return steps
    return {"medpy hd95": partial(hd95, y_pred[0, 0].numpy(), y[0, 0].numpy(), spacing), **steps}
