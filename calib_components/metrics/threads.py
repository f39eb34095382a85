"""Threads of PyTorch while voxels are read."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

__all__ = ["one_thread"]


_lock = threading.Lock()
_inside, _threads = 0, 1  # how many calls go on, in threads of Python, and what the first of them found


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread of the CPU; also a decorator.

    A long series of short parallel operations stalls whenever another process, such as a data loader's worker, occupies
    one of the cores.
    """
    global _inside, _threads
    with _lock:
        if _inside == 0:
            _threads = torch.get_num_threads()
        _inside += 1
    torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                torch.set_num_threads(_threads)
