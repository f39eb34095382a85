"""Time and memory of all measures of an evaluation of one case, over those of published code."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
import torch.nn.functional as F

from calib_components.metrics.case import Case, measure_case
from scripts.benchmarks import published
from scripts.benchmarks.timing import peak_resident_mib, print_ratios, set_up

STRUCTURES = {"RV": [1], "MYO": [2], "LV": [3]}


def heart(size: int, slices: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Return smooth probabilities of a heart, `(4, size, size, slices)`, and labels that differ at
    its surfaces.
    """
    generator = torch.Generator().manual_seed(0)
    axes = (torch.arange(n) - (n - 1) / 2 for n in (size, size, slices))
    rows, columns, along = torch.meshgrid(*axes, indexing="ij")
    taper, radius = 1 - (along / slices) ** 2, torch.hypot(rows, columns)
    left, wall, right = (
        18 * taper - radius,
        26 * taper - radius,
        22 * taper - torch.hypot(rows, (columns + 32) / 0.8),
    )
    depth = torch.stack(
        [-torch.maximum(wall, right), torch.minimum(right, -wall), torch.minimum(wall, -left), left]
    )

    def noise() -> torch.Tensor:
        coarse = torch.randn(
            1, 4, *(max(2, n // 8) for n in (size, size, 4 * slices)), generator=generator
        )
        return F.interpolate(coarse, depth.shape[1:], mode="trilinear")[0]

    # A network is not ever more certain far from a surface
    logits = 9 * torch.tanh(depth / 6) + 3 * noise()
    return logits.softmax(0), (depth + 2 * noise()).argmax(0)


def measure(p: torch.Tensor, label: torch.Tensor) -> dict[str, float]:
    """Return all measures of an evaluation, by the names of their columns."""
    return measure_case(Case(label[None], STRUCTURES, p, p.argmax(0)))


def measure_as_published(p: torch.Tensor, label: torch.Tensor) -> dict[str, Any]:
    """Return what published code has of these measures, by the same names."""
    of = p.numpy(), label.numpy()
    values = published.dice_scores(*of, STRUCTURES) | published.hausdorff_distances(*of, STRUCTURES)
    return values | published.calibration_errors(*of)


def evaluation(
    device: str = "cpu",
    rounds: int = 5,
    threads: int = 2,
    sizes: Sequence[int] = (144, 224),
    slices: int = 10,
) -> None:
    """See `scripts.helpers.commands.evaluation`."""
    set_up(rounds, threads)
    rows: dict[str, Callable[..., Any]] = {
        "published: DSC, HD95, ECE, CECE, NLL": measure_as_published,
        "evaluation": measure,
    }
    for size in sizes:
        case = heart(size, slices)
        on_device = [part.to(device) for part in case]
        steps = {
            name: partial(row, *(on_device if row is measure else case))
            for name, row in rows.items()
        }
        peaks = {}
        for name, row in rows.items():
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                where = device if row is measure else "cpu"
                peaks[name] = pool.submit(_peak_mib, row, size, slices, where).result()
        print_ratios(f"evaluation of 4x{size}x{size}x{slices}", steps, rounds, device, peaks)


def _peak_mib(row: Callable[..., Any], size: int, slices: int, device: str) -> float:
    case = [part.to(device) for part in heart(size, slices)]
    ctypes.CDLL(None).malloc_trim(0)  # what making the case took would be used again, unseen
    return peak_resident_mib(partial(row, *case))
