"""Jobs: what runs them, why some failed, and that an interrupt ends them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import submitit

from calib_tools import jobs


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "POLL", 0.01)


def test_reasons_are_one_line_and_others_go_on() -> None:
    def fail() -> str | None:
        raise ValueError("first\nlast")

    works: dict[str, Callable[[], str | None]] = {
        "a": lambda: None,
        "b": lambda: "no memory",
        "c": fail,
    }
    failed = jobs.run_jobs(works, jobs.make_executor("local", 2, Path(), None))
    assert failed == {"b": "no memory", "c": "last"}


def test_command_says_why_it_failed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("ValueError: of an earlier run\n")
    for code, reason in (
        ("print('ok')", None),
        (
            "try:\n int('x')\nexcept ValueError as e:\n raise RuntimeError('wrapped') from e",
            "ValueError: invalid",
        ),
        ("import sys; sys.exit('image_size: wrong')", "image_size: wrong"),
        ("import os; os._exit(3)", "exit code 3"),
    ):
        found = jobs.run_command([sys.executable, "-c", code], log)
        assert (
            found is None
            if reason is None
            else str(found).startswith(reason) and str(found).endswith(str(log))
        )


def test_progress_in_a_log_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now, done = [100.0], [1]  # of an earlier run
    monkeypatch.setattr(jobs.time, "monotonic", lambda: now[0])
    progress = jobs.Progress(9, "scan", lambda: done[0])
    for seconds, number in ((0, 1), (10, 2), (40, 5), (50, 6)):
        now[0], done[0] = 100.0 + seconds, number
        progress.show()
    assert capsys.readouterr().out.splitlines() == [
        "1 of 9 scans, 00:00 elapsed, ? left",
        "5 of 9 scans, 00:40 elapsed, 00:40 left",  # four in 40 s
    ]


def test_progress_on_a_terminal_is_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = jobs.Progress(9, "scan", lambda: 4)
    progress.show()
    shown = capsys.readouterr()
    assert "4/9" in shown.err
    assert shown.out == ""


def test_the_end_names_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    jobs.end("2 of 2 shares are finished", {})
    with pytest.raises(SystemExit) as caught:
        jobs.end("1 of 2 shares are finished", {"share 2 of 2": "killed"})
    assert caught.value.code == 1
    assert capsys.readouterr().out.splitlines() == [
        "2 of 2 shares are finished, 0 failed",
        "1 of 2 shares are finished, 1 failed: share 2 of 2",
    ]


def test_interrupt_ends_processes_and_starts_no_others(tmp_path: Path) -> None:
    def wait() -> str | None:
        return jobs.run_command(
            [sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "log"
        )

    executor = jobs.make_executor("local", 1, tmp_path, None)

    def interrupt() -> int:
        if jobs._running:
            raise KeyboardInterrupt
        return 0

    with pytest.raises(KeyboardInterrupt):
        jobs.run_jobs({"a": wait, "b": wait}, executor, jobs.Progress(2, "scan", interrupt))
    executor.shutdown()  # returns, since the first process was ended and the second never began
    assert jobs._running == set()


def test_jobs_of_submitit(tmp_path: Path) -> None:
    """Its executor that runs jobs in this process stands for that of Slurm."""
    executor = submitit.DebugExecutor(tmp_path)
    assert jobs.run_jobs({"a": lambda: None, "b": lambda: "no GPU"}, executor) == {"b": "no GPU"}
