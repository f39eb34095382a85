"""Cases shared among processes and jobs. Jobs are those of submitit, started on this machine."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import submitit

from calib_components.errors import InputError
from calib_components.tools.many_cases.processes import Resources, Share, run_here, run_jobs
from tests.calib_components.tools.many_cases.made_up import MadeUpCase, made_up, started

CASES = [MadeUpCase("a"), MadeUpCase("b", "raise"), MadeUpCase("c"), MadeUpCase("d")]
REASON = {"b": "b: expected a good case, got a bad one"}


@pytest.fixture(autouse=True)
def polls_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calib_components.tools.many_cases.processes.POLL", 0.1)


class Ended:
    """A job that has ended, in the place of one of Slurm."""

    def __init__(self, result: dict[str, str]) -> None:
        self.result = lambda: result

    def done(self) -> bool:
        return True


class Here:
    """Runs jobs at once, in the place of Slurm, and keeps what each got."""

    def __init__(self) -> None:
        self.shares: list[list[str]] = []

    def map_array(self, function: Share, shares: list[list[MadeUpCase]]) -> list[Ended]:
        self.shares = [[case.name for case in share] for share in shares]
        return [Ended(function(share)) for share in shares]


def test_a_case_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    run = made_up(tmp_path)
    assert run_here(run, CASES, 1) == REASON
    assert [case.name for case in run.unfinished(CASES)] == ["b"]


def test_finished_cases_are_not_run_again(tmp_path: Path) -> None:
    run = made_up(tmp_path)
    run(CASES[2])
    run_here(run, CASES, 1)
    assert started(run) == ["c", "a", "b", "d"]


@pytest.mark.parametrize(
    ("jobs", "shares"),
    [(1, [["a", "b", "c", "d"]]), (3, [["a", "d"], ["b"], ["c"]]), (9, [["a"], ["b"], ["c"], ["d"]])],
)
def test_each_job_gets_a_share(jobs: int, shares: list[list[str]], tmp_path: Path) -> None:
    executor = Here()
    assert run_jobs(made_up(tmp_path), CASES, executor, jobs) == REASON
    assert executor.shares == shares


def test_without_cases_there_are_no_jobs(tmp_path: Path) -> None:
    assert run_jobs(made_up(tmp_path), [], None, 3) == {}


def test_a_job_that_dies_is_the_reason_for_its_unfinished_cases(tmp_path: Path) -> None:
    run = made_up(tmp_path / "out")
    executor = submitit.LocalExecutor(folder=tmp_path / "jobs")
    cases = [MadeUpCase("a"), MadeUpCase("b", "raise"), MadeUpCase("c", "die"), MadeUpCase("d"), MadeUpCase("e")]
    failed = run_jobs(run, cases, executor, 2)  # a, c, e and b, d
    assert failed.keys() == {"b", "c", "e"}
    assert failed["b"] == REASON["b"]
    for name in ("c", "e"):
        assert failed[name].startswith("its job ended as ")
        assert Path(failed[name].partition("; see ")[2]).is_file()
    assert [case.name for case in run.unfinished(cases)] == ["b", "c", "e"]


def test_a_job_that_is_preempted_goes_on_where_it_was(tmp_path: Path) -> None:
    run = made_up(tmp_path / "out")
    executor = submitit.LocalExecutor(folder=tmp_path / "jobs")
    executor.update_parameters(timeout_min=60)
    (job,) = executor.map_array(Share(run), [[MadeUpCase("a"), MadeUpCase("b", "wait")]])
    while not (tmp_path / "out" / "process").exists() or started(run) != ["a", "b"]:
        time.sleep(0.05)
    os.kill(int((tmp_path / "out" / "process").read_text()), signal.SIGUSR2)  # as Slurm announces it
    while len(started(run)) < 3:
        assert not job.done()
        time.sleep(0.05)
    (tmp_path / "out" / "go").touch()
    assert job.result() == {}
    assert started(run) == ["a", "b", "b"]


def test_jobs_that_slurm_refuses_are_an_error_of_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("srun", "sbatch"):
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpuu' >&2\nexit 1\n")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    executor = submitit.SlurmExecutor(folder=tmp_path / "jobs")
    with pytest.raises(InputError, match=r"^--slurm: expected jobs that are accepted, got sbatch: error: invalid par"):
        run_jobs(made_up(tmp_path / "out"), CASES, executor, 2)


def test_an_interrupt_ends_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Job:
        cancelled = False

        def done(self) -> bool:
            raise KeyboardInterrupt

        def cancel(self) -> None:
            self.cancelled = True

    class Executor:
        def map_array(self, function: Any, shares: list[Any]) -> list[Job]:
            return jobs

    jobs = [Job(), Job()]
    with pytest.raises(KeyboardInterrupt):
        run_jobs(made_up(tmp_path), CASES, Executor(), 2)
    assert [job.cancelled for job in jobs] == [True, True]


def test_a_case_that_another_process_works_on_is_waited_for(tmp_path: Path) -> None:
    run, case = made_up(tmp_path), MadeUpCase("a")
    run(MadeUpCase("a", "raise"))  # makes the lock
    (lock,) = (run.work / "locks").iterdir()
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        thread = threading.Thread(target=run, args=[case])
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        (tmp_path / "a.txt").touch()  # the other process finishes it
        file.write("[]")  # and says from which files: none
    thread.join()
    assert started(run) == ["a"]


QUOTED = "\"{time: 60, mem: '16GB'}\", with quotes around what is no plain word or number"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"executor": "pbs"}, "--executor: expected local or slurm, got 'pbs'"),
        ({"slurm": {"time": 60}}, "--slurm: expected --executor slurm, got local"),
        (
            {"executor": "slurm", "slurm": "{a: a-b}"},
            f"--slurm: expected parameters such as {QUOTED}, got '{{a: a-b}}'",
        ),
        ({"workers": 0}, "workers: expected a whole number of at least 1, got 0"),
        ({"executor": "slurm", "workers": 2}, "--workers: expected --executor local, got slurm; --jobs is the number"),
        ({"executor": "slurm", "jobs": 0}, "--jobs: expected a whole number of at least 1, got 0"),
        ({"jobs": 8}, "--jobs: expected --executor slurm, got local"),
    ],
)
def test_unsuitable_resources_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        Resources(**{"executor": "local", "workers": 1, "jobs": None, "slurm": None, **options})
