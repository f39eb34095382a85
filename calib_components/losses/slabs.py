"""Work on the voxels of a batch slab by slab, each on one thread.

All that a formula needs in between then stays in the caches of a CPU. Threads that share every
operation, as PyTorch's do, wait for each other some hundred times in a loss, which takes a multiple
of the time where another process uses the same cores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import torch

# Logits in a slab. On a CPU, half a dozen tensors of this size for each of two threads fit into the
# caches, and more threads have smaller slabs; threads take turns in calling operations, so that
# small slabs cost time. On a GPU each kernel has work for all of it.
CPU_SLAB = 2**19
GPU_SLAB = 2**24
MAX_THREADS = 8
Result = TypeVar("Result")


class Slab(NamedTuple):
    """An index of several images, or of several rows (of the first spatial dimension) of one
    image.
    """

    images: slice
    classes: slice  # all of them
    rows: slice


def map_slabs(
    function: Callable[[Slab], Result], shape: torch.Size, device: torch.device
) -> list[Result]:
    """Return the results of a function for all slabs of logits of a shape `(B, N, *S)`, in
    order.
    """
    if torch.compiler.is_compiling():
        return [function(whole(shape))]
    if device.type != "cpu":
        return [function(slab) for slab in split(shape, GPU_SLAB)]
    num_threads = min(torch.get_num_threads(), MAX_THREADS)
    slabs = split(shape, CPU_SLAB * 2 // max(num_threads, 2))
    num_threads = min(num_threads, len(slabs))
    if num_threads == 1:
        return [function(slab) for slab in slabs]
    return _map_on_threads(function, slabs, num_threads)


def _map_on_threads(
    function: Callable[[Slab], Result], slabs: list[Slab], num_threads: int
) -> list[Result]:
    """Apply a function on several threads, whose operations use no further threads.

    New threads of PyTorch take the number of threads that was set last, in any thread, so the
    number of the caller is set again.
    """
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(num_threads, "slab", torch.set_num_threads, (1,)) as pool:
            return list(pool.map(function, slabs))
    finally:
        torch.set_num_threads(before)


def split(shape: torch.Size, size: int) -> list[Slab]:
    """Divide `(B, N, *S)` into slabs of about this many logits."""
    num_images, num_classes, num_rows = shape[:3]
    row_size = num_classes * math.prod(shape[3:])
    rows = min(max(size // row_size, 1), num_rows)
    images = max(size // (row_size * num_rows), 1)
    return [
        Slab(slice(image, image + images), slice(None), slice(row, min(row + rows, num_rows)))
        for image in range(0, num_images, images)
        for row in range(0, num_rows, rows)
    ]


def whole(shape: torch.Size) -> Slab:
    """Return all voxels as one slab."""
    return Slab(slice(0, shape[0]), slice(None), slice(0, shape[2]))
