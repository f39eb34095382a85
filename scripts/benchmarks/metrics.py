"""Times of the metrics over those of MONAI and medpy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import monai.metrics
import torch
import torch.nn.functional as F

from calib_components.metrics import CalibrationMetric, CECEMetric, ECEMetric, hausdorff_distance_95
from scripts.benchmarks.losses import SHAPES
from scripts.benchmarks.timing import Step, print_ratios, set_up

# Shape, radii in voxels, and spacing in mm: those of BraTS and ACDC.
STRUCTURES = {
    "whole tumour": ((240, 240, 155), (48, 40, 38), (1.0, 1.0, 1.0)),
    "left ventricle": ((224, 224, 10), (18, 18, 4), (1.5, 1.5, 10.0)),
}


def metrics(device: str = "cpu", rounds: int = 5, threads: int = 2) -> None:
    """Calibration errors of a batch over MONAI's, which is classwise, and HD95 over medpy's, or
    else MONAI's.

    The peak memory is that of PyTorch's tensors alone, without NumPy's arrays.

    Args:
        device: Where to run, "cpu" or "cuda".
        rounds: How many times each metric is timed.
        threads: CPU threads for PyTorch.
    """
    set_up(rounds, threads)
    for shape in SHAPES:
        p = (2 * torch.randn(shape)).softmax(1).to(device)
        index = torch.randint(shape[1], (shape[0], 1, *shape[2:])).to(device)
        one_hot = F.one_hot(index[:, 0], shape[1]).movedim(-1, 1).float()
        monai_error = monai.metrics.CalibrationErrorMetric(num_bins=15)
        steps: dict[str, Step] = {
            "monai CalibrationErrorMetric": partial(_measure, monai_error, p, one_hot)
        }
        for metric in (
            CalibrationMetric(region="all"),
            ECEMetric(region="all"),
            CECEMetric(region="all"),
        ):
            steps[f"{type(metric).__name__}, all voxels"] = partial(_measure, metric, p, index)
        print_ratios(f"one batch, {'x'.join(map(str, shape))}", steps, rounds, device)
    for name, (size, radii, spacing) in STRUCTURES.items():
        y_pred, y = (_structure(size, radii, shift) for shift in (0, 1))
        title = f"HD95 in mm, {name}, {'x'.join(map(str, size))}"
        print_ratios(title, _hd95_steps(y_pred, y, spacing), rounds, "cpu")


def _measure(metric: Any, probabilities: torch.Tensor, target: torch.Tensor) -> None:
    metric(probabilities, target)
    metric.aggregate()
    metric.reset()


def _structure(shape: Sequence[int], radii: Sequence[int], shift: int) -> torch.Tensor:
    """Return the mask of a structure with a wavy surface, `(1, 1, *shape)`."""
    offsets = torch.meshgrid(
        *(torch.arange(size) - size // 2 - shift for size in shape), indexing="ij"
    )
    distance = torch.stack(
        [offset / radius for offset, radius in zip(offsets, radii, strict=True)]
    ).norm(dim=0)
    waves = torch.stack([torch.sin(offset / (4 + shift)) for offset in offsets]).sum(0)
    return (distance + 0.1 * waves < 1)[None, None]


def _hd95_steps(y_pred: torch.Tensor, y: torch.Tensor, spacing: Sequence[float]) -> dict[str, Step]:
    monai_options: dict[str, Any] = {
        "include_background": True,
        "percentile": 95,
        "spacing": spacing,
    }
    steps: dict[str, Step] = {
        "monai compute_hausdorff_distance": partial(
            monai.metrics.compute_hausdorff_distance, y_pred, y, **monai_options
        ),
        "hausdorff_distance_95": partial(hausdorff_distance_95, y_pred, y, spacing),
    }
    try:
        from medpy.metric.binary import hd95
    except ImportError:
        return steps
    return {"medpy hd95": partial(hd95, y_pred[0, 0].numpy(), y[0, 0].numpy(), spacing), **steps}
