"""Processes that can be ended together."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

__all__ = ["ProcessGroup"]


class ProcessGroup:
    """Starts processes from several threads and ends all of them, with the processes that they started."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen] = set()
        self.ending = False

    def call(self, command: Sequence[str], **options: Any) -> int:
        """Run a command and return its exit code, as `subprocess.call` does.

        Args:
            command: Command and arguments.
            **options: Arguments of `subprocess.Popen`.
        """
        process = subprocess.Popen(command, start_new_session=True, **options)
        self._running.add(process)
        if self.ending:  # end() may have looked before this process was there
            self._end_process(process)
        code = process.wait()
        self._running.discard(process)
        return code

    def end(self) -> None:
        """End the processes that are running, and those that are started later."""
        self.ending = True
        for process in list(self._running):
            self._end_process(process)

    @staticmethod
    def _end_process(process: subprocess.Popen) -> None:
        if process.poll() is None:
            with suppress(ProcessLookupError):  # it ended in between
                os.killpg(process.pid, signal.SIGTERM)
