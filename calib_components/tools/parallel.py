"""Work on many cases in several processes, with progress."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from calib_components.errors import InputError

__all__ = ["check_workers", "map_cases", "parallel"]

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST = 8  # processes by default, since each holds a case in memory


def check_workers(workers: int | None) -> int:
    """Return the number of processes: that given, or one per core, at most 8.

    Raises:
        InputError: It is not a number of at least 1.
    """
    if workers is not None and workers < 1:
        raise InputError(f"workers: expected a whole number of at least 1, got {workers}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return workers or min(cores, MOST)


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
    bar = functools.partial(tqdm, desc=name, total=len(items), unit="case", leave=False, disable=None)
    if (count := min(check_workers(workers), len(items))) < 2:
        return [function(item) for item in bar(items)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([getattr(function, "func", function).__module__])  # imports once for all processes
    pool = ProcessPoolExecutor(count, context, _start_worker, (1,))
    try:
        return list(bar(pool.map(function, items)))
    except BrokenProcessPool:
        raise InputError("A worker process died, perhaps for lack of memory. Try fewer --workers.") from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def parallel(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    name: str,
    preload: Sequence[str],
    threads: int = 1,
) -> Iterator[Iterable[Result]]:
    """Give the results of a function, in the order of the items, while processes work on the next.

    A progress bar is shown on terminals. With one worker or item, the work is done in this process.

    Args:
        function: What is done with each item; with several workers, it must be picklable.
        items: Such as cases.
        workers: Number of processes.
        name: What the progress bar is called.
        preload: Modules that take long to import; they are imported once for all processes.
        threads: Number of threads of each process, and of this one where it does the work: sums of many numbers depend
            on it in their last digits.

    Raises:
        InputError: A process died.
    """
    with ExitStack() as stack:
        run: Callable[..., Any] = map
        if min(workers, len(items)) > 1:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(list(preload))
            pool = ProcessPoolExecutor(min(workers, len(items)), context, _start_worker, (threads,))
            stack.callback(pool.shutdown, cancel_futures=True)
            run = pool.map
        else:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(threads)
        try:  # a process may die while others still get their first items
            bar = tqdm(run(function, items), name, len(items), unit="case", leave=False, disable=None)
            yield stack.enter_context(bar)
        except BrokenProcessPool:
            raise InputError(
                "workers: expected processes that finish, got one that died, perhaps for lack of memory; try fewer"
            ) from None


def _start_worker(threads: int) -> None:
    """Use so many threads, leave interrupts to the parent, and do not outlive it."""

    def exit_with_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
        os._exit(1)

    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=exit_with_parent, daemon=True).start()
