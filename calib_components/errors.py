"""The error for unsuitable files, folders and arguments; files and folders are written completely
or not at all.
"""

from __future__ import annotations

import difflib
import functools
import math
import numbers
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

UNFINISHED = ".unfinished-"  # prefix of a file or folder while it is written
# In a worker's traceback, and MONAI's, where a `_target_` is misspelt
MISTAKES = ("InputError: ", "Cannot locate class or function path")


class InputError(ValueError):
    """A file, folder or argument is unsuitable.

    The message is one line, printed without a traceback.
    """


def printable(text: object) -> str:
    """Return a text as one line: characters that a terminal does not show, such as line breaks, are
    escaped.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def error_line(error: BaseException | None) -> str | None:
    """Return the message of the first mistake of a user among an exception and its causes; None
    without one.

    It is an `InputError`, or a component that MONAI does not find. PyTorch passes the exception of
    a DataLoader's worker on as the text of a traceback.
    """
    while error is not None:
        text = str(error)
        if isinstance(error, InputError) or any(mark in text for mark in MISTAKES):
            return printable(text.split("InputError: ")[-1].partition("\n")[0])
        error = error.__cause__ or error.__context__
    return None


def root_cause(error: BaseException) -> BaseException:
    """Return the first `InputError` among an exception and its causes, or the last cause: MONAI
    wraps them.
    """
    while error.__cause__ is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


def nearest(name: str, known: Iterable[str], dashes: str = "") -> str:
    """Return a hint at the known name that is most like a misspelt one, `; did you mean ...?`;
    nothing if none is.
    """
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {dashes}{close[0]}?" if close else ""


@contextmanager
def reading(file: str | os.PathLike, kind: str = "the file") -> Iterator[Path]:
    """Turn whatever goes wrong while a file is read into an `InputError` that names it and the
    `kind` it should be.
    """
    try:
        yield Path(file)
    except InputError:
        raise
    except Exception as error:  # JSON, YAML, gzip, zlib and nibabel each raise their own
        raise InputError(
            error_line(error) or f"{file}: cannot read {kind}: {_reason(error)}."
        ) from error


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file or folder completely or not at all, also on a full disk: what is there stays
    until the new one is.

    The context gives a hidden path beside it, which takes its place at the end. An `OSError`
    becomes an `InputError`; nothing is left at the hidden path.
    """
    target = Path(path)
    unfinished = target.with_name(f"{UNFINISHED}{target.name}")
    try:
        yield unfinished
        if unfinished.is_dir():
            shutil.rmtree(target, ignore_errors=True)
        unfinished.replace(target)
    except OSError as error:
        raise InputError(f"{target}: cannot write it: {_reason(error)}.") from error
    finally:
        with suppress(OSError):  # it was replaced, could not be made, or is a folder
            unfinished.unlink()
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def writing_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Write a folder as `writing` does, which is empty at first."""
    with writing(folder) as unfinished:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        yield unfinished


def check_writable(name: str, folder: str | os.PathLike) -> None:
    """Raise `InputError` unless the folder of an argument can be written, or made if it is not
    there.
    """
    path = Path(folder).absolute()
    there = next(place for place in (path, *path.parents) if os.path.lexists(place))
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(65_536))  # on a full disk, an empty file can be made
    except OSError as error:
        raise InputError(f"{name}: cannot write to {folder}: {error.strerror}.") from None


def make_folder(folder: str | os.PathLike) -> None:
    """Make a folder, and those that it is in, unless it is there; raise `InputError` if that
    fails.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot make the folder: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    reason = (
        f"{error} is missing"
        if isinstance(error, KeyError)
        else getattr(error, "strerror", None) or str(error)
    )
    return " ".join(reason.split()).rstrip(".") or type(error).__name__


def check_number(name: str, value: Any, lowest: float, highest: float = math.inf) -> None:
    """Raise `InputError` unless an argument is a finite number from `lowest` to `highest`."""
    _check_real(name, value, lowest, highest, numbers.Real, "a number")


def check_count(name: str, value: Any, lowest: int, highest: float = math.inf) -> None:
    """Raise `InputError` unless an argument is an integer from `lowest` to `highest`."""
    _check_real(name, value, lowest, highest, numbers.Integral, "an integer")


def _check_real(
    name: str, value: Any, lowest: float, highest: float, kind: type, noun: str
) -> None:
    is_number = isinstance(value, kind) and type(value) is not bool  # which is an integer, too
    if not (is_number and lowest <= float(value) <= highest and float(value) < math.inf):
        bounds = f"of at least {lowest}" if highest == math.inf else f"from {lowest} to {highest}"
        raise InputError(f"{name} must be {noun} {bounds}, got {value!r}.")


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise `InputError` unless an argument is one of several values."""
    if value not in (known := list(choices)):
        raise InputError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}.")


@functools.cache
def warn_once(message: str) -> None:
    """Warn of unusual input, once per process."""
    warnings.warn(message, stacklevel=2)
