"""Preparation of a whole data set: several cases at a time, continued where an earlier run ended."""

from __future__ import annotations

import fcntl
import functools
import itertools
import math
import multiprocessing
import os
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from calib_components.data import IMAGE, UNFINISHED
from calib_components.errors import InputError
from calib_components.tools.preparation.case import Case, prepare_case
from calib_components.tools.preparation.facts import FACTS, RECIPE, Facts
from calib_components.tools.preparation.split import write_datalist


def prepare_cases(
    cases: Sequence[Case],
    facts: Facts,
    out: Path,
    fractions: Sequence[float],
    seed: int,
    workers: int | None,
    skip_bad: bool,
) -> None:
    """Prepare the cases that `out` lacks, then write `out/datalist.json` for all of them.

    Args:
        cases: Cases to prepare.
        facts: Facts of the data set, with its source.
        out: Folder of the prepared cases; created if missing.
        fractions: Shares of the patients for training, validation and testing; they sum to 1.
        seed: Seed of the split.
        workers: Number of processes, and so of cases in memory; None for one per core, at most 8.
        skip_bad: Leave bad cases out and list them at the end; otherwise the first one, by name, is an error.

    Raises:
        InputError: An argument or a case is not as expected, `out` holds cases that were prepared differently, or a
            patient would change the split that it has in the present `datalist.json`.
        ChildProcessError: A worker process was killed.
    """
    if np.shape(fractions) != (3,) or min(fractions) < 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise InputError(f"fractions: expected three numbers of at least 0 that sum to 1, got {fractions}")
    cases = sorted(cases, key=lambda case: case.name)
    for first, second in itertools.pairwise(cases):
        if first.name == second.name:
            raise InputError(f"{second.label}: expected one case {second.name}, got a second besides {first.label}")

    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{out}: expected no other run that prepares it, got one") from None
        for unfinished in out.glob(f"{UNFINISHED}*"):
            shutil.rmtree(unfinished)
        if any(out.glob(f"*/{IMAGE}")):
            _check_recipe(facts, out)
        facts.write(out)
        problems = _prepare_missing(cases, facts, out, workers or min(os.cpu_count() or 1, 8), skip_bad)
        done = [case for case in cases if case.name not in problems]
        for problem in problems.values():
            print(f"skipped: {problem}", file=sys.stderr)
        if not done:
            raise InputError(f"{out}: expected at least one good case, got none")
        write_datalist(done, facts, out, fractions, seed)


def _check_recipe(facts: Facts, out: Path) -> None:
    present = Facts.read(out)
    for name in RECIPE:
        if getattr(present, name) != getattr(facts, name):
            old, new = (textwrap.shorten(str(getattr(either, name)), 100) for either in (present, facts))
            raise InputError(
                f"{out / FACTS}: expected {name} {new}, got {old}, which the cases there were prepared with; choose "
                "another folder"
            )


def _prepare_missing(cases: Sequence[Case], facts: Facts, out: Path, workers: int, skip_bad: bool) -> dict[str, str]:
    """Prepare what is missing; return what is wrong with each bad case, or raise it."""
    missing = [case for case in cases if not (out / case.name).is_dir()]
    attempt = functools.partial(_attempt, facts=facts, out=out)
    problems = {}
    with ExitStack() as stack:
        run: Callable[..., Any] = map
        if min(workers, len(missing)) > 1:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["monai.bundle", "monai.transforms"])
            pool = ProcessPoolExecutor(min(workers, len(missing)), context, _start_worker)
            stack.callback(pool.shutdown, cancel_futures=True)
            run = pool.map
        try:
            bar = tqdm(run(attempt, missing), out.name, len(missing), unit="case", leave=False, disable=None)
            for case, problem in zip(missing, stack.enter_context(bar), strict=True):
                if problem and not skip_bad:
                    raise InputError(problem)
                if problem:
                    problems[case.name] = problem
        except BrokenProcessPool:
            reason = "a worker process died, perhaps for lack of memory; try fewer --workers"
            raise ChildProcessError(reason) from None
    return problems


def _attempt(case: Case, facts: Facts, out: Path) -> str:
    try:
        prepare_case(case, facts, out)
    except InputError as error:
        return str(error)
    return ""


def _start_worker() -> None:
    """Use one thread per process, leave interrupts to the parent, and do not outlive it."""

    def exit_with_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
        os._exit(1)

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=exit_with_parent, daemon=True).start()
