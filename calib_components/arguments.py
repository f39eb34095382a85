"""Checks of arguments, shared by losses, metrics and others: errors of the form `name: expected ..., got ...`."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from calib_components.errors import InputError, check_choice, check_count, check_number, warn_once  # noqa: F401


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number by its type: an integer of Python or numpy, but neither True nor 1.0."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_flag(name: str, value: Any) -> None:
    """Raise `InputError` unless an argument is True or False."""
    if not isinstance(value, bool):
        raise InputError(f"{name}: expected True or False, got {value!r}")


def check_ignore_index(value: Any) -> None:
    """Raise `InputError` unless `ignore_index` is a whole number that a label can have, or None."""
    if value is not None and not (is_whole(value) and -(2**63) < value < 2**63):
        raise InputError(f"ignore_index: expected a whole number or None, got {value!r}")


def check_known(owner: type, options: Iterable[str], hints: Mapping[str, str]) -> None:
    """Raise `TypeError` for an option that a class does not have.

    Args:
        owner: The class; its `__init__` has the options.
        options: Names of the options given.
        hints: What to do instead, for options of similar classes elsewhere, such as MONAI's.
    """
    parameters = inspect.signature(owner.__init__).parameters.values()  # type: ignore[misc]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters][1:]
    for name in options:
        if name not in known:
            hint = f"; {hints[name]}" if name in hints else ""
            expected = f"an option of {owner.__name__} ({', '.join(known) or 'none'})"
            raise TypeError(f"{name}: expected {expected}, got another{hint}")
