"""Locks, which keep runs out of each other's way. A lock is gone with its process, also with one that was killed."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TextIO

from calib_components.errors import InputError

__all__ = ["LOCK", "locked", "only_run", "try_lock"]

LOCK = ".lock"


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Make a folder, and refuse other runs that write to it; the hidden file of the lock stays.

    Raises:
        InputError: Another run writes to it, or it cannot be written.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            is_alone = try_lock(stack.enter_context(open(folder / LOCK, "w")))
        except OSError as error:
            raise InputError(f"{folder}: expected a folder that can be written, got {error.strerror}") from error
        if not is_alone:
            raise InputError(f"{folder}: expected no other run that writes to it, got one")
        yield


@contextmanager
def locked(file: Path) -> Iterator[TextIO]:
    """Keep other processes that lock the same file waiting; it is open for appending."""
    with open(file, "a") as lock:
        _flock(lock, fcntl.LOCK_EX)
        yield lock


def try_lock(file: IO[str]) -> bool:
    """Lock an open file, unless another process has; processes that inherit the file keep it locked."""
    try:
        _flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _flock(file: IO[str], operation: int) -> None:
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        raise
    except OSError as error:  # ENOSYS or ENOLCK, without a name of the file
        raise InputError(
            f"{file.name}: expected a file system with locks (flock), got none: {error.strerror}"
        ) from error
