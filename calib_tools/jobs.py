"""Jobs side by side on this machine, or on a Slurm cluster.

Submitit has an executor for this machine, too, but it starts all jobs at once: threads that wait
for processes run a number of them at a time.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from calib_components.errors import InputError, check_choice, check_count

POLL = 0.5  # seconds
BETWEEN_LINES = 30.0  # seconds, in a log
_running: set[subprocess.Popen] = set()  # processes that an interrupt ends


def make_executor(name: str, workers: int, folder: Path, slurm: Mapping[str, Any] | None) -> Any:
    """Return what starts jobs: threads of this process, or submitit, which keeps logs and results
    in a folder.

    The parameters of jobs on Slurm are those of `submitit.SlurmExecutor.update_parameters`.
    """
    check_choice("--executor", name, ("local", "slurm"))
    if name == "local":
        check_count("--workers", workers, 1)
        return ThreadPoolExecutor(workers)
    try:
        import submitit

        executor = submitit.SlurmExecutor(folder=folder)
        executor.update_parameters(**(slurm or {}))
    except ImportError:
        raise InputError(
            "--executor slurm needs submitit. Install it: pip install -e '.[slurm]'"
        ) from None
    except (RuntimeError, TypeError, ValueError) as error:  # no Slurm, or an unknown parameter
        raise InputError(f"--executor slurm: {str(error).splitlines()[0]}") from None
    return executor


class Progress:
    """How many are done of how many, and the time left: a bar on terminals, in logs a line now and
    then.

    Args:
        total: Number of all.
        unit: What is counted, such as "scan".
        count_done: Returns how many are done.
    """

    def __init__(self, total: int, unit: str, count_done: Callable[[], int]) -> None:
        self.total, self.unit, self.count_done = total, unit, count_done
        self.start, self.first, self.next_line = time.monotonic(), count_done(), 0.0
        self.bar = tqdm(total=total, initial=self.first, unit=f" {unit}", disable=None)

    def show(self) -> None:
        """Bring the bar up to date, or write a line if it is time for one."""
        done, now = self.count_done(), time.monotonic()
        self.bar.update(max(0, done - self.bar.n))
        if self.bar.disable and now >= self.next_line:
            self.next_line = now + BETWEEN_LINES
            text = f"{{n}} of {{total}} {self.unit}s, {{elapsed}} elapsed, {{remaining}} left"
            elapsed = now - self.start
            line = tqdm.format_meter(done, self.total, elapsed, initial=self.first, bar_format=text)
            print(line, flush=True)


def run_jobs(
    jobs: Mapping[str, Callable[[], str | None]],
    executor: Any,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Run jobs by name, say when each has ended, and end all of them on an interrupt; return why
    some failed, by name.

    A job returns why it failed, in one line, or None. Slurm gets the jobs as an array. The progress
    is by default that of the jobs.
    """
    if not jobs:
        return {}
    failed = {}
    with getattr(executor, "batch", contextlib.nullcontext)():
        running = {name: executor.submit(job) for name, job in jobs.items()}
    progress = progress or Progress(len(jobs), "job", lambda: len(jobs) - len(running))
    try:
        while running:
            time.sleep(POLL)
            for name, reason in _take_finished(running).items():
                tqdm.write(f"{name}: {reason or 'finished'}")
                if reason is not None:
                    failed[name] = reason
            progress.show()
    finally:
        progress.bar.close()
        for job in running.values():
            job.cancel()
        for process in list(_running):
            process.terminate()
    return failed


def _take_finished(running: dict[str, Any]) -> dict[str, str | None]:
    """Take out the jobs that have ended, and return why each failed, or None."""
    names = [name for name, job in running.items() if job.done()]
    return {name: _reason(running.pop(name)) for name in names}


def _reason(job: Any) -> str | None:
    """Return why a job failed, or None; submitit's errors, such as of a job that Slurm cancelled,
    end with the reason.
    """
    try:
        return job.result()
    except Exception as error:
        return (str(error).strip().splitlines() or [repr(error)])[-1]


def end(summary: str, failed: Mapping[str, str]) -> None:
    """Print how jobs ended, and which failed, whose reasons `run_jobs` has printed; then the
    process ends with exit code 1.
    """
    print(": ".join([f"{summary}, {len(failed)} failed", *filter(None, [", ".join(failed)])]))
    if failed:
        sys.exit(1)


def run_command(
    command: Sequence[str], log_file: Path, accepted: Container[int] = (0,)
) -> str | None:
    """Run a command, whose output is added to a file; return why it failed, in one line, or None
    for one of the accepted exit statuses.
    """
    with open(log_file, "a+", errors="replace") as log:
        start = log.tell()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _running.add(process)
        try:
            code = process.wait()
        finally:
            process.kill()  # on an interrupt of this thread
            _running.discard(process)
        log.seek(start)
        lines = [line for line in log.read().splitlines() if line.strip()]
    if code in accepted:
        return None
    # The cause is the first exception
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    return f"{(raised[:1] or lines[-1:] or [f'exit code {code}'])[0]}; see {log_file}"
