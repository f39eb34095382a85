"""Cases shared among processes of this machine, or among the jobs of a Slurm array."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from calib_components.errors import InputError, printable
from calib_components.tools.compare.slurm import check_executor, one_line, slurm_executor
from calib_components.tools.many_cases.bundle_run import BundleRun
from calib_components.tools.parallel import check_workers, parallel

__all__ = ["Resources", "Share", "run_here", "run_jobs"]

POLL = 2.0  # seconds between looks at what is finished
JOBS = 10


@dataclass(frozen=True)
class Resources:
    """Where cases run.

    Attributes:
        executor: `local` or `slurm`.
        workers: Number of processes of this machine.
        jobs: Number of jobs of Slurm, at most; None for `JOBS`.
        slurm: Parameters of submitit for these jobs.

    Raises:
        InputError: An option is not suitable.
    """

    executor: str
    workers: int
    jobs: int | None
    slurm: dict[str, Any] | None

    def __post_init__(self) -> None:
        check_executor(self.executor, self.slurm)
        check_workers(self.workers)
        if self.executor == "slurm" and self.workers != 1:
            raise InputError("--workers: expected --executor local, got slurm; --jobs is the number of jobs")
        if self.executor == "local" and self.jobs is not None:
            raise InputError("--jobs: expected --executor slurm, got local; --workers is the number of processes")
        if self.jobs is not None and self.jobs < 1:
            raise InputError(f"--jobs: expected a whole number of at least 1, got {self.jobs}")

    def runner(self, folder: Path) -> Callable[[BundleRun, Sequence[Any]], dict[str, str]]:
        """Return what runs cases and gives the reason for each that failed, by its name.

        Args:
            folder: Where submitit keeps logs.

        Raises:
            InputError: submitit or Slurm is not installed, or does not know a parameter.
        """
        if self.executor == "local":
            return partial(run_here, workers=self.workers)
        return partial(run_jobs, executor=slurm_executor(folder, self.slurm or {}), jobs=self.jobs or JOBS)


def run_here(run: BundleRun, cases: Sequence[Any], workers: int) -> dict[str, str]:
    """Run cases side by side on this machine; the processes share the threads that this one may use.

    Args:
        run: What is done with each case.
        cases: The cases.
        workers: Number of processes.

    Returns:
        The reason for each case that failed, by its name.

    Raises:
        InputError: No case can be run, or a process died.
    """
    threads = max(1, torch.get_num_threads() // workers)
    with parallel(run, cases, workers, "cases", ["calib_components.tools.many_cases"], threads) as reasons:
        return _reasons(cases, reasons)


def _reasons(cases: Sequence[Any], reasons: Iterable[str | None]) -> dict[str, str]:
    """Say why a case failed as soon as it has, and return the reasons."""
    failed = {}
    for case, reason in zip(cases, reasons, strict=True):
        if reason is not None:
            failed[case.name] = reason
            tqdm.write(f"{case.name}: {reason}")
    return failed


@dataclass(frozen=True)
class Share:
    """What a job of an array does: it runs its cases one after another.

    When Slurm preempts a job or its time is over, submitit puts it into the queue again; it goes on where it was.

    Attributes:
        run: What is done with each case.
    """

    run: BundleRun

    def __call__(self, cases: Sequence[Any]) -> dict[str, str]:
        """Return the reason for each case that failed, by its name."""
        return _reasons(cases, map(self.run, tqdm(cases, unit="case")))

    def checkpoint(self, cases: Sequence[Any]) -> Any:
        """Return what submitit submits again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, cases)


def run_jobs(run: BundleRun, cases: Sequence[Any], executor: Any, jobs: int) -> dict[str, str]:
    """Run cases as an array of jobs, each with a share of them; end the jobs on an interrupt.

    Args:
        run: What is done with each case.
        cases: The cases.
        executor: An executor of submitit.
        jobs: Number of jobs, at most.

    Returns:
        The reason for each case that failed, by its name.

    Raises:
        InputError: The jobs are not accepted, such as for a partition that there is not.
    """
    failed: dict[str, str] = {}
    shares = [cases[first::jobs] for first in range(min(jobs, len(cases)))]
    try:
        submitted = executor.map_array(Share(run), shares) if shares else []
    except RuntimeError as error:
        raise InputError(f"--slurm: expected jobs that are accepted, got {printable(str(error).strip())}") from error
    running = list(zip(submitted, shares, strict=True))
    try:
        with tqdm(total=len(cases), unit="case", desc="cases") as progress:
            while running:
                time.sleep(POLL)
                ended = [(job, share) for job, share in running if job.done()]
                running = [(job, share) for job, share in running if (job, share) not in ended]
                for job, share in ended:
                    failed |= _failed(run, job, share)
                left = {case.name for case in run.lacking(cases)}
                progress.update(len(cases) - len(left - failed.keys()) - progress.n)
    finally:
        for job, _ in running:
            job.cancel()
    return failed


def _failed(run: BundleRun, job: Any, share: Sequence[Any]) -> dict[str, str]:
    """Return the reason for each case that a job which has ended has not finished."""
    try:
        return job.result()
    except Exception as error:
        reason = one_line(error)
        if not job.paths.result_pickle.is_file():  # submitit says that it is missing, not why
            reason = f"its job ended as {job.state}"
        return {case.name: f"{reason}; see {job.paths.stderr}" for case in run.unfinished(share)}
