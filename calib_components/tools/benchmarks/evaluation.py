"""Time and memory of all metrics of an evaluation of one case, over those of published code."""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser

from calib_components.metrics import structure_masks
from calib_components.tools.benchmarks import published
from calib_components.tools.benchmarks.timing import BUNDLES, interleaved_seconds, peak_resident_mib, set_up

__all__ = ["CaseMeasures", "evaluation", "heart"]

REPORTED = ["dsc", "hd95", "ece"]  # metrics of evaluate.yaml that published code has too


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
        slices: Number of its slices.
        device: Where the metrics run.

    Attributes:
        metrics: The metrics of evaluate.yaml, by name.
    """

    def __init__(self, bundle: Path, size: int, slices: int = 10, device: str = "cpu") -> None:
        parser = ConfigParser(
            ConfigParser.load_config_files([bundle / "configs" / f"{name}.yaml" for name in ("train", "evaluate")])
        )
        parser["device"], parser["dataset_dir"] = device, str(bundle / "none")  # the bundle's facts, not those of data
        handlers = [parser.get_parsed_content(f"validate::{name}") for name in ("key_metric", "additional_metrics")]
        self.metrics: dict[str, Any] = {name: handler.metric_fn for of in handlers for name, handler in of.items()}
        self.structures: dict[str, list[int]] = parser.get_parsed_content("structures")
        logits, y = heart(size, slices)
        p = logits.softmax(1)
        masks = [structure_masks(of[0], [*self.structures.values()])[None] for of in (p.argmax(1, keepdim=True), y)]
        inputs = {name: [p, y] for name in self.metrics} | {"dsc": masks, "hd95": masks, "logits": [logits, y]}
        self._inputs = {name: [tensor.to(device) for tensor in tensors] for name, tensors in inputs.items()}
        self._arrays = [tensor[0].numpy() for tensor in (logits, p, y[:, 0])]

    def measure(self, names: Iterable[str]) -> None:
        """Run these metrics."""
        for name in names:
            self.metrics[name].reset()
            self.metrics[name](*self._inputs[name])

    def measure_as_published(self, names: Iterable[str]) -> dict[str, Any]:
        """Return what published code computes in place of these metrics, by name."""
        logits, p, label = self._arrays
        structures = self.structures
        masks = published.region_masks(p, label, structures) if {"ece", "smooth_ece"} & {*names} else {}
        measures: dict[str, Callable[[], dict[str, Any]]] = {
            "dsc": partial(published.dice_scores, p, label, structures),
            "hd95": partial(published.hausdorff_distances, p, label, structures),
            "ece": partial(published.calibration_errors, p, label, masks),
            "smooth_ece": partial(published.smooth_errors, p, label, masks),
            "volume": partial(published.volumes, p, label, structures),
            "expected_dsc": partial(published.expected_dice_scores, p, structures),
            "thresholds": partial(published.threshold_counts, p, label, structures),
            "selective": partial(published.risk_and_coverage, p, label),
            "logits": partial(published.logit_magnitudes, logits, label),
        }
        return {name: value for metric in names for name, value in measures[metric]().items()}


def evaluation(
    device: str = "cpu",
    rounds: int = 5,
    threads: int = 2,
    sizes: Sequence[int] = (144, 224),
    slices: int = 10,
    bundle: Path = BUNDLES / "acdc_mri_nacl_segmentation",
) -> None:
    """All metrics of an evaluation of one ACDC volume, over published code for those that it reports.

    Published code reports the DSC, HD95 (by medpy if it is installed), and ECE, CECE, NLL and Brier score, here in the
    same ten regions; ratios are over its time for these. The metrics of the same also give the values if the
    probabilities were true and those of drawn labels, which it lacks. The other metrics stand beside plain NumPy of the
    same.

    Memory is the peak of a fresh process by the count of Linux, above what it holds with the case in memory.

    Args:
        device: Where the metrics run, "cpu" or "cuda"; published code runs on the CPU.
        rounds: How many times each is timed.
        threads: CPU threads for PyTorch.
        sizes: Rows and columns of the volumes: those that the bundle's network sees, and those of whole slices.
        slices: Number of slices.
        bundle: Folder of the ACDC bundle.
    """
    set_up(rounds, threads)
    for size in sizes:
        case = CaseMeasures(bundle, size, slices, device)
        everything = list(case.metrics)
        others = [name for name in everything if name not in REPORTED]
        published_row, all_row = "published: DSC, HD95, ECE, CECE, NLL, Brier", "all metrics of evaluate.yaml"
        rows: dict[str, tuple[str, list[str]]] = {
            published_row: ("measure_as_published", REPORTED),
            "metrics of the same": ("measure", REPORTED),
            all_row: ("measure", everything),
            "NumPy: smooth ECE, volumes, thresholds, ...": ("measure_as_published", others),
            "metrics of these": ("measure", others),
        }
        for name in REPORTED:
            rows |= {f"published: {name}": ("measure_as_published", [name]), f"metric: {name}": ("measure", [name])}
        seconds = interleaved_seconds(
            {row: partial(getattr(case, method), names) for row, (method, names) in rows.items()}, rounds, device
        )
        print(f"\nevaluation of 4x{size}x{size}x{slices} ({device}, {threads} threads, median of {rounds} rounds)")
        print(f"{'':44}   ratio        ms  peak MiB")
        baseline = seconds[published_row]
        for row, (method, names) in rows.items():
            ratio = statistics.median(own / base for own, base in zip(seconds[row], baseline, strict=True))
            line = f"{row:44}  {ratio:6.2f}  {1e3 * statistics.median(seconds[row]):8.1f}"
            if row in (published_row, all_row):
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                    mib = pool.submit(_peak_mib, bundle, size, slices, device, method, names).result()
                line += f"  {mib:8.1f}"
            print(line, flush=True)


def _peak_mib(bundle: Path, size: int, slices: int, device: str, method: str, names: Sequence[str]) -> float:
    case = CaseMeasures(bundle, size, slices, device)
    ctypes.CDLL(None).malloc_trim(0)  # what making the case took would be used again, unseen
    return peak_resident_mib(partial(getattr(case, method), names))
