"""One run at a time in an output folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TextIO

from filelock import FileLock, Timeout

from calib_components.errors import InputError, make_folder

__all__ = ["LOCK", "locked", "only_run", "try_lock"]

LOCK = ".lock"


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Make a folder, and lock it while the context is open. The hidden file of the lock stays.

    Raises:
        InputError: Another process has locked the folder, or it cannot be written.
    """
    make_folder(folder)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"{folder}: another run writes to this folder. Wait for its end, or choose another.") from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror or error}.") from error
    try:
        yield
    finally:
        lock.release()


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
