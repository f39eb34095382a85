"""Time and memory of the objects of a volume."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from calib_components.metrics.case import Case
from calib_components.metrics.objects import FoundObject, find_objects
from scripts.benchmarks.timing import peak_resident_mib, set_up


def lesions(size: int, slices: int, number: int) -> Case:
    """Return a case with about so many candidates, balls of up to 13 voxels across, and as many
    true objects, half of which they touch.
    """
    generator = torch.Generator().manual_seed(0)
    label = torch.zeros(1, size, size, slices, dtype=torch.uint8)
    p = torch.zeros(label.shape)
    axes = torch.meshgrid(*[torch.arange(-6, 7)] * 3, indexing="ij")
    distance = torch.stack(axes).square().sum(0).sqrt()
    for index in range(number):
        start = [int(torch.randint(side - 15, (), generator=generator)) for side in label.shape[1:]]
        radius = 1 + 5 * float(torch.rand((), generator=generator))
        box = tuple(slice(at, at + 13) for at in start)
        p[0][box] = p[0][box].maximum((1.2 - distance / radius).clamp(0, 1))
        moved = tuple(slice(at + 2 * (index % 2), at + 13 + 2 * (index % 2)) for at in start)
        label[0][moved] |= (distance < radius / (1 + index % 2)).byte()
    return Case(label, {"lesion": [0]}, p, sigmoid=True)


def _extend(found: list[FoundObject], step: Callable[[], list[FoundObject]]) -> None:
    found.extend(step())


def objects(
    size: int = 512, slices: int = 300, number: int = 2000, rounds: int = 1, threads: int = 1
) -> None:
    """See `scripts.helpers.commands.objects`."""
    set_up(rounds, threads)
    seconds, found = [], list[FoundObject]()
    for _ in range(rounds):
        case = lesions(size, slices, number)
        step = partial(find_objects, case, "lesion")
        start = time.perf_counter()
        found.clear()
        peak = peak_resident_mib(partial(_extend, found, step))
        seconds.append(time.perf_counter() - start)
    print(f"{len(found)} objects of {size}x{size}x{slices}: {min(seconds):.1f} s,", end=" ")
    print(f"peak MiB {peak:.0f}")
