"""Threads of PyTorch while voxels are read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["one_thread"]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread of the CPU; also a decorator.

    A long series of short parallel operations stalls whenever another process, such as a data loader's worker, occupies
    one of the cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
