"""Work on many cases in several processes, with a progress bar."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import torch
from tqdm import tqdm

from calib_components.errors import InputError, check_count

__all__ = ["map_cases"]

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST = 8  # processes by default, since each holds a case in memory


def map_cases(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int | None = None, name: str = "cases"
) -> list[Result]:
    """Return the result of a function for each item, computed in several processes, with a progress bar on terminals.

    Args:
        function: A function of a module, or a `functools.partial` of one.
        items: Such as cases.
        workers: Number of processes; None for one per core, at most 8. With one, or one item, this process does it all.
        name: Name of the progress bar.

    Raises:
        InputError: A process died, or the number is not at least 1.
    """
    if workers is None:
        workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, MOST)
    check_count("--workers", workers, 1)
    bar = functools.partial(tqdm, desc=name, total=len(items), unit="case", leave=False, disable=None)
    if min(workers, len(items)) < 2:
        return [function(item) for item in bar(items)]
    context = multiprocessing.get_context("forkserver")  # a fork of a process with threads of PyTorch may hang
    context.set_forkserver_preload([getattr(function, "func", function).__module__])  # imported once for all processes
    pool = ProcessPoolExecutor(min(workers, len(items)), context, _start_worker)
    try:
        return list(bar(pool.map(function, items)))
    except BrokenProcessPool:
        raise InputError("A worker process died, perhaps for lack of memory. Try fewer --workers.") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    torch.set_num_threads(1)  # the processes share the cores
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends them
