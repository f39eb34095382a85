"""What all command lines share: values as they were typed, no work before every option is known, errors in one line."""

from __future__ import annotations

import functools
import inspect
import signal
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import fire
from fire import decorators

from calib_components.errors import InputError

Command = Callable[..., None]

decorators.FIRE_METADATA = "_fire_metadata"  # a private name, or Fire's help lists it as a group of commands

# How the text of an option is read, by the annotation of the parameter. Without this, Fire reads any text as a Python
# literal if it can: the folder 2024_11_25 would become 20241125, and 1e3 would become 1000.0.
READERS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    str: ("text", str),
    Path: ("a path", Path),
    int: ("a whole number", int),
    float: ("a number", float),
    bool: ("true or false", lambda text: {"true": True, "false": False}[text.lower()]),
}


def run(name: str, commands: Command | Mapping[str, Command]) -> None:
    """Run one command, or one of several, with the options of the process.

    Interrupts and what is not as it should be end the process with one line on standard error.

    Args:
        name: what messages call the command line.
        commands: the command, or each by its name. Options are read by the annotations of its parameters.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        # Fire reports a misspelt option only after the command has run: so let it parse once for a command that does
        # nothing. It returns None, where a request for help returns the commands themselves.
        if fire.Fire(_each(_idle, commands), name=name) is None:
            fire.Fire(_each(_typed, commands), name=name)
    except (InputError, OSError) as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{name}: interrupted; the same command continues from here")


def _each(change: Callable[[Command], Command], commands: Command | Mapping[str, Command]) -> Any:
    if isinstance(commands, Mapping):
        return {name: _each(change, command) for name, command in commands.items()}
    return change(commands)


def _idle(command: Command) -> Command:
    return functools.wraps(command)(_typed(lambda *_, **__: None, command))


def _typed(function: Command, like: Command | None = None) -> Command:
    """The command with a reader for each parameter whose annotation says how to read it."""
    command = like or function
    wrapped = functools.wraps(command)(lambda *args, **options: function(*args, **options))
    hints = get_type_hints(command)
    for parameter in inspect.signature(command).parameters.values():
        if parameter.kind is not parameter.VAR_KEYWORD and (read := _reader(parameter.name, hints[parameter.name])):
            wrapped = decorators.SetParseFn(read, parameter.name)(wrapped)
    return wrapped


def _reader(name: str, annotation: Any) -> Callable[[str], Any] | None:
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(argument for argument in get_args(annotation) if argument is not type(None))
    several = get_origin(annotation) is Sequence
    kind = get_args(annotation)[0] if several else annotation
    if kind not in READERS:
        return None
    described, read_one = READERS[kind]

    def read(text: str) -> Any:
        try:
            return [read_one(part.strip()) for part in text.strip("[]()").split(",")] if several else read_one(text)
        except (KeyError, ValueError):
            expected = f"{described}, or several with commas" if several else described
            raise InputError(f"--{name}: expected {expected}, got {text!r}") from None

    return read
