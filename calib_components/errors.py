"""The error for whatever a user gave that is not as it should be."""

from __future__ import annotations


class InputError(ValueError):
    """A file, folder or argument is not as it should be.

    The message is one line, `name: expected ..., got ...`, that names the file or argument; command lines print it
    without a traceback.
    """
