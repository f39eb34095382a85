"""Work on the voxels of a batch slab by slab: a few rows, of the first spatial dimension, of all
images.

All that a formula needs in between then is small, and stays in the caches of a CPU.
"""

from __future__ import annotations

import torch

CPU_SLAB, GPU_SLAB = 2**18, 2**24  # logits in a slab; on a GPU each kernel has work for all of it


def slabs_of(logits: torch.Tensor) -> list[slice]:
    """Divide the rows of logits `(B, N, *S)` into slabs, each an index of the third dimension."""
    count = logits.shape[2]
    if torch.compiler.is_compiling():
        return [slice(0, count)]
    size = CPU_SLAB if logits.device.type == "cpu" else GPU_SLAB
    rows = max(size * count // logits.numel(), 1)
    return [slice(row, min(row + rows, count)) for row in range(0, count, rows)]
