"""Time and memory of all metrics of an evaluation of one case, over those of published code."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser

from calib_components.metrics import structure_masks
from calib_components.tools.benchmarks import published
from calib_components.tools.benchmarks.timing import Step, peak_resident_mib, print_ratios

__all__ = ["CaseMeasures", "evaluation", "heart"]

SIZES = (144, 224)  # rows and columns that the network of the ACDC bundle sees, and those of a whole slice
REPORTED = ("dsc", "hd95", "ece")  # metrics of evaluate.yaml of which published code measures the same


def heart(size: int, slices: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Return smooth logits of a heart, `(1, 4, size, size, slices)`, and labels that differ at its surfaces."""
    generator = torch.Generator().manual_seed(0)
    axes = (torch.arange(n) - (n - 1) / 2 for n in (size, size, slices))
    rows, columns, along = torch.meshgrid(*axes, indexing="ij")
    taper, radius = 1 - (along / slices) ** 2, torch.hypot(rows, columns)
    left, wall, right = 18 * taper - radius, 26 * taper - radius, 22 * taper - torch.hypot(rows, (columns + 32) / 0.8)
    depth = torch.stack([-torch.maximum(wall, right), torch.minimum(right, -wall), torch.minimum(wall, -left), left])

    def noise() -> torch.Tensor:
        coarse = torch.randn(1, 4, *(max(2, n // 8) for n in (size, size, 4 * slices)), generator=generator)
        return F.interpolate(coarse, depth.shape[1:], mode="trilinear")[0]

    logits = 9 * torch.tanh(depth / 6) + 3 * noise()  # a network is not ever more certain far from a surface
    return logits[None], (depth + 2 * noise()).argmax(0)[None, None]


class CaseMeasures:
    """All measures of a case, by the metrics that a bundle's evaluation configures and by published code.

    Args:
        bundle: Folder of the ACDC bundle.
        size: Rows and columns of the case.
        device: Where the metrics run.
    """

    def __init__(self, bundle: Path, size: int, device: str = "cpu") -> None:
        configs = [bundle / "configs" / f"{name}.yaml" for name in ("train", "evaluate")]
        parser = ConfigParser(ConfigParser.load_config_files(configs))
        parser["device"], parser["dataset_dir"] = device, str(bundle / "none")  # not those of data beside it
        handlers = [parser.get_parsed_content(f"validate::{name}") for name in ("key_metric", "additional_metrics")]
        self.metrics: dict[str, Any] = {name: handler.metric_fn for of in handlers for name, handler in of.items()}
        self.structures: dict[str, list[int]] = parser.get_parsed_content("structures")
        logits, y = heart(size)
        p = logits.softmax(1)
        masks = [structure_masks(of[0], [*self.structures.values()])[None] for of in (p.argmax(1, keepdim=True), y)]
        inputs = dict.fromkeys(self.metrics, (p, y)) | {"dsc": masks, "hd95": masks, "logits": (logits, y)}
        self.inputs = {name: [tensor.to(device) for tensor in tensors] for name, tensors in inputs.items()}
        self.p, self.label, self.logits = p[0].numpy(), y[0, 0].numpy(), logits[0].numpy()

    def measure(self, names: Iterable[str]) -> None:
        """Run these metrics."""
        for name in names:
            self.metrics[name].reset()
            self.metrics[name](*self.inputs[name])

    def measure_as_published(self, names: Iterable[str]) -> dict[str, Any]:
        """Return what published code measures where these metrics do."""
        p, label, structures = self.p, self.label, self.structures
        masks = published.region_masks(p, label, structures) if {"ece", "smooth_ece"} & {*names} else {}
        measures = {
            "dsc": partial(published.dice_scores, p, label, structures),
            "hd95": partial(published.hausdorff_distances, p, label, structures),
            "ece": partial(published.calibration_errors, p, label, masks),
            "smooth_ece": partial(published.smooth_errors, p, label, masks),
            "volume": partial(published.volumes, p, label, structures),
            "expected_dsc": partial(published.expected_dice_scores, p, structures),
            "thresholds": partial(published.threshold_counts, p, label, structures),
            "selective": partial(published.risk_and_coverage, p, label),
            "logits": partial(published.logit_magnitudes, self.logits, label),
        }
        return {name: value for metric in names for name, value in measures[metric]().items()}


def evaluation(bundle: Path, device: str = "cpu", rounds: int = 5, threads: int = 2) -> None:
    """All metrics of an evaluation of one ACDC volume over what published code needs for those that it reports.

    These are DSC, HD95 (by medpy if it is installed), and ECE, CECE, NLL and Brier score in ten regions. The metrics
    also give the values if the probabilities were true, which published code does not. "Others" are the smooth ECE,
    volumes, expected DSC, thresholds, risk and coverage, and logits, next to plain NumPy of the same.

    The peak memory of Linux is that of a fresh process, on top of the case.

    Args:
        bundle: Folder of the ACDC bundle.
        device: Where the metrics run, "cpu" or "cuda"; published code runs on the CPU.
        rounds: How many times each is timed.
        threads: CPU threads for PyTorch.
    """
    torch.set_num_threads(threads)
    for size in SIZES:
        case = CaseMeasures(bundle, size, device)
        others = [name for name in case.metrics if name not in REPORTED]
        steps: dict[str, Step] = {
            "as published: DSC, HD95, ECE, CECE, NLL, Brier": partial(case.measure_as_published, REPORTED),
            "metrics of the same": partial(case.measure, REPORTED),
            "all metrics of evaluate.yaml": partial(case.measure, list(case.metrics)),
            "others in NumPy": partial(case.measure_as_published, others),
            "metrics of others": partial(case.measure, others),
        }
        for name in REPORTED:
            steps |= {
                f"as published: {name}": partial(case.measure_as_published, [name]),
                f"metric {name}": partial(case.measure, [name]),
            }
        print_ratios(f"evaluation of one volume, 4x{size}x{size}x10", steps, rounds, device)
        for name, published_code in (("as published, all of the above", True), ("all metrics of evaluate.yaml", False)):
            with get_context("spawn").Pool(1) as pool:
                mib = pool.apply(_peak_mib, (bundle, size, device, published_code))
            print(f"{name}: peak {mib:.0f} MiB of the process")


def _peak_mib(bundle: Path, size: int, device: str, published_code: bool) -> float:
    case = CaseMeasures(bundle, size, device)
    return peak_resident_mib(partial(case.measure_as_published if published_code else case.measure, [*case.metrics]))
