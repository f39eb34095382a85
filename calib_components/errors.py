"""The error for unsuitable files, folders and arguments, and files that are written completely or not at all."""

from __future__ import annotations

import difflib
import errno
import functools
import math
import numbers
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = [
    "UNFINISHED",
    "InputError",
    "check_choice",
    "check_count",
    "check_number",
    "check_output",
    "check_writable",
    "error_line",
    "make_folder",
    "nearest",
    "printable",
    "reading",
    "warn_once",
    "writing",
]

# As shown in a traceback, which is all that a DataLoader's worker passes on.
SHOWN = re.compile(r"^(?:[\w.]+\.)?InputError: (.*)$", re.MULTILINE)
UNFINISHED = ".unfinished-"  # prefix of a file while it is written
DISK = (errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EPERM, errno.EROFS)


class InputError(ValueError):
    """A file, folder or argument is unsuitable.

    The message is one line, `name: expected ..., got ...`, that names the file or argument; command lines print it
    without a traceback.
    """


def printable(text: object) -> str:
    """Return a text as one line: characters that a terminal does not show, such as line breaks, are escaped.

    Examples:
        >>> printable("two\\nlines")
        'two\\\\nlines'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def error_line(error: BaseException | None) -> str | None:
    """Return the one line that tells a user what is wrong, however often the error was wrapped on its way.

    Args:
        error: An exception that was raised.

    Returns:
        The message of the first `InputError` among its causes, also of one in a worker of a `DataLoader`; the place and
        the reason if a disk is full or does not allow writing; what to do if memory is; otherwise None.
    """
    line, seen = None, set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if shown := SHOWN.findall(str(error)):
            line = printable(shown[0])
        elif isinstance(error, InputError):
            line = printable(error)
        elif line is None and isinstance(error, OSError) and error.errno in DISK:
            line = printable(f"{error.filename or 'disk'}: expected to be written, got {error.strerror}")
        elif line is None and type(error).__name__ == "OutOfMemoryError":  # of torch
            line = printable(f"memory: expected enough on the device, got none left; try a lower batch_size: {error}")
        elif line is None and str(error).startswith("DataLoader worker (pid"):
            line = printable(f"num_workers: expected memory for each, got a worker that was killed; try 0: {error}")
        error = error.__cause__ or error.__context__
    return line


def nearest(name: str, known: Iterable[str], dashes: str = "") -> str:
    """Return a hint at the known name that is most like a misspelt one; nothing if none is.

    Examples:
        >>> nearest("sed", ["seed", "device"], dashes="--")
        '; did you mean --seed?'
    """
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {dashes}{close[0]}?" if close else ""


@contextmanager
def reading(file: str | os.PathLike, expected: str = "a readable file") -> Iterator[Path]:
    """Turn whatever goes wrong while a file is read into an `InputError` of one line that names the file.

    Args:
        file: The file, which the context gives as a path.
        expected: What it should be.

    Examples:
        >>> with reading("absent.json") as file:
        ...     file.read_text()
        Traceback (most recent call last):
        calib_components.errors.InputError: absent.json: expected a readable file, got No such file or directory
    """
    try:
        yield Path(file)
    except InputError:
        raise
    except Exception as error:  # JSON, YAML, gzip, zlib and nibabel each raise their own
        raise InputError(f"{file}: expected {expected}, got {_reason(error)}") from error


@contextmanager
def writing(file: str | os.PathLike) -> Iterator[Path]:
    """Write a file completely or not at all, also on a full disk: a file that is there stays until the new one is.

    Args:
        file: The file, in a folder that exists. The context gives the path of a hidden file beside it, which takes its
            place at the end.

    Raises:
        InputError: It cannot be written, that is, an `OSError` was raised; nothing is left of the hidden file.

    Examples:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "numbers.csv"
        >>> with writing(target) as file:
        ...     _ = file.write_text("1,2")
        >>> target.read_text()
        '1,2'
    """
    target = Path(file)
    unfinished = target.with_name(f"{UNFINISHED}{target.name}")
    try:
        yield unfinished
        unfinished.replace(target)
    except OSError as error:
        raise InputError(f"{target}: expected a file that can be written, got {_reason(error)}") from error
    finally:
        with suppress(OSError):  # it was replaced, or could not be made
            unfinished.unlink()


def check_writable(name: str, folder: str | os.PathLike) -> None:
    """Check that a folder can be written, or made if it is not there. Nothing is made.

    Args:
        name: Argument that the folder is from, for messages.
        folder: The folder.

    Raises:
        InputError: It cannot be written.
    """
    path = Path(folder).absolute()
    there = next(place for place in (path, *path.parents) if os.path.lexists(place))
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise InputError(f"{name}: expected a folder that can be written, got {folder}: {error.strerror}") from None


def make_folder(folder: str | os.PathLike) -> None:
    """Make a folder, and those that it is in, unless it is there.

    Raises:
        InputError: It cannot be made, such as where a file is in its place.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: expected a folder that can be made, got {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"one that lacks {error}"
    reason = getattr(error, "strerror", None) or str(error)
    return " ".join(reason.split()) or type(error).__name__


def check_output(folder: str | os.PathLike, marker: str, overwrite: bool = False) -> Path:
    """Check that a command may write to a folder: it is new, empty or an earlier output, or `overwrite` is set.

    Args:
        folder: Output folder. It is not created.
        marker: A file that every output of the command has, such as `summary.json`.
        overwrite: Whether the folder may hold other files.

    Raises:
        InputError: The folder holds other files, or is a file.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise InputError(f"Output folder is a file: {path}.")
    if path.is_dir() and not overwrite and not (path / marker).exists() and any(path.iterdir()):
        raise InputError(f"Output folder is not empty: {path}. Pass --overwrite to write into it.")
    return path


def check_number(name: str, value: Any, lowest: float, highest: float = math.inf) -> None:
    """Raise `InputError` unless an argument is a finite number from `lowest` to `highest`."""
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Real)
        or not (lowest <= value <= highest and value < math.inf)
    ):
        raise InputError(f"{name} must be a number {_bounds(lowest, highest)}, got {value!r}.")


def check_count(name: str, value: Any, lowest: int, highest: float = math.inf) -> None:
    """Raise `InputError` unless an argument is an integer from `lowest` to `highest`."""
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not (is_whole and lowest <= value <= highest):
        raise InputError(f"{name} must be an integer {_bounds(lowest, highest)}, got {value!r}.")


def _bounds(lowest: float, highest: float) -> str:
    return f"of at least {lowest}" if highest == math.inf else f"from {lowest} to {highest}"


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise `InputError` unless an argument is one of several strings."""
    if value not in (known := list(choices)):
        raise InputError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}.")


@functools.cache
def warn_once(message: str) -> None:
    """Warn of unusual input, once per process."""
    warnings.warn(message, stacklevel=2)
