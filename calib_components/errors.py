"""The error for unsuitable files, folders and arguments."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["InputError", "reading"]


class InputError(ValueError):
    """A file, folder or argument is unsuitable.

    The message is one line, `name: expected ..., got ...`, that names the file or argument; command lines print it
    without a traceback.
    """


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
        reason = (
            f"one that lacks {error}" if isinstance(error, KeyError) else getattr(error, "strerror", None) or str(error)
        )
        raise InputError(
            f"{file}: expected {expected}, got {' '.join(reason.split()) or type(error).__name__}"
        ) from error
