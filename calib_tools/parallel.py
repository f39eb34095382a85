"""Work on many cases in several processes, with a progress bar.

The processes are forks of a server that has imported PyTorch and the function once: four of them
take 0.1 GB each, where those of joblib import for themselves and take 0.4 GB. tqdm's own
`process_map` forks this process.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from calib_components.errors import InputError, check_count, printable

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
MAX_WORKERS = 8  # by default, since each holds a case in memory
SERVER_START = 4.0  # seconds that the server of processes takes to import PyTorch and MONAI


def count_workers(workers: int | None) -> int:
    """Return a number of workers after a check; by default one per core, at most 8."""
    if workers is not None:
        check_count("--workers", workers, 1)
        return workers
    if hasattr(os, "sched_getaffinity"):  # Linux: the cores of this job
        return min(len(os.sched_getaffinity(0)), MAX_WORKERS)
    return min(os.cpu_count() or 1, MAX_WORKERS)


def map_cases(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int | None = None,
    name: str = "cases",
    flaws: list[str] | None = None,
) -> list[Result]:
    """Return the result of a function for each item, computed in several processes, with a progress
    bar on terminals.

    This process works alone for as long as the others would take to start: few or small cases are
    done by then.

    The function is one of a module, or a `functools.partial` of one. With one worker, or one item,
    this process does it all; see `count_workers` for the default.

    Given a list of `flaws`, items that the function refuses by an `InputError` are left out, and
    why is appended to it, unless it refuses all of them.
    """
    if flaws is not None:
        attempts = map_cases(functools.partial(_attempt, function), items, workers, name)
        errors = [each for each in attempts if isinstance(each, InputError)]
        if errors and len(errors) == len(attempts):
            raise errors[0]
        for error in errors:
            log.warning("Left out: %s", printable(error))
        flaws += map(printable, errors)
        return [each for each in attempts if not isinstance(each, InputError)]
    workers = min(count_workers(workers), len(items))
    results: list[Result] = []
    start = time.monotonic()
    with tqdm(desc=name, total=len(items), unit="case", leave=False, disable=None) as bar:
        for item in items:
            if workers > 1 and time.monotonic() - start >= SERVER_START:
                break
            results.append(function(item))
            bar.update()
        for result in _map_in_processes(function, items[len(results) :], workers):
            results.append(result)
            bar.update()
    return results


def _map_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[Result]:
    if not items:
        return
    # A fork of a process with threads of PyTorch may hang
    context = multiprocessing.get_context("forkserver")
    # The server imports it once for all processes
    context.set_forkserver_preload([_module_of(function)])
    pool = ProcessPoolExecutor(workers, context, _start_worker)
    try:
        yield from pool.map(function, items)
    except BrokenProcessPool:
        raise InputError(
            "A worker process died, perhaps for lack of memory. Try fewer --workers."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _attempt(function: Callable[[Item], Result], item: Item) -> Result | InputError:
    try:
        return function(item)
    except InputError as error:
        return error


def _module_of(function: Any) -> str:
    """Return the module of the function that a `functools.partial` or `_attempt` calls."""
    while isinstance(function, functools.partial):
        function = function.args[0] if function.func is _attempt else function.func
    return function.__module__


def _start_worker() -> None:
    torch.set_num_threads(1)  # the processes share the cores
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends them
