"""What all command lines share: values as typed, no work before every option is known, errors in one line."""

from __future__ import annotations

import functools
import inspect
import itertools
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
Commands = Command | Mapping[str, "Commands"]

decorators.FIRE_METADATA = "_fire_metadata"  # a private name, or Fire's help lists it as a group of commands


def _number(text: str) -> float:
    """The number as typed: an int stays one, so that files that record it do not show 1.0 for 1."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def _path(text: str) -> Path:
    if not text:  # such as an unset variable of a shell, which Path would take for the current folder
        raise ValueError
    return Path(text)


# How the text of an option is read, by the annotation of the parameter. Without this, Fire reads any text as a Python
# literal if it can: the folder 2024_11_25 would become 20241125, and 1e3 would become 1000.0.
READERS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    str: ("text", str),
    Path: ("a path", _path),
    int: ("a whole number", int),
    float: ("a number", _number),
    bool: ("true or false", lambda text: {"true": True, "false": False}[text.lower()]),
}


def run(name: str, commands: Commands) -> None:
    """Run one command, or one of several, with the arguments of the process.

    Interrupts and errors in arguments or files end the process with one line on standard error.

    Args:
        name: Name of the command line in messages.
        commands: The command; or several by their names, of which some may again be several. Options are read by the
            annotations of their parameters.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        # Fire reports a misspelt option only after the command has run, so it first parses the arguments for a command
        # that does nothing. That returns None, whereas a group without the name of a command returns the group.
        arguments = _with_help_last(sys.argv[1:], commands)
        _check_that_options_have_values(arguments, commands)
        if fire.Fire(_each(_idle, commands), arguments, name) is None:
            fire.Fire(_each(_typed, commands), arguments, name)
    except (InputError, OSError) as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{name}: interrupted; run the same command again to continue")


def _with_help_last(arguments: list[str], commands: Commands) -> list[str]:
    """Ask for help in the form that Fire does not take for an option of a command that accepts any."""
    if not {"--help", "-h"} & set(arguments):
        return arguments
    path = []
    for argument in arguments:
        if not isinstance(commands, Mapping) or argument not in commands:
            break
        path.append(argument)
        commands = commands[argument]
    return [*path, "--", "--help"]


def _check_that_options_have_values(arguments: list[str], commands: Commands) -> None:
    """Fire takes an option without a value for the text "True", which would become the name of a folder."""
    while isinstance(commands, Mapping):
        if not arguments or arguments[0] not in commands:
            return
        commands, arguments = commands[arguments[0]], arguments[1:]
    hints = get_type_hints(commands)
    for option, following in itertools.pairwise([*arguments, "--"]):
        name = option[2:].replace("-", "_")
        if option.startswith("--") and hints.get(name, bool) is not bool and following[:2] == "--":
            raise InputError(f"{option}: expected a value, got none")


def _each(change: Callable[[Command], Command], commands: Commands) -> Any:
    if isinstance(commands, Mapping):
        return {name: _each(change, command) for name, command in commands.items()}
    return change(commands)


def _idle(command: Command) -> Command:
    return functools.wraps(command)(_typed(lambda *_, **__: None, command))


def _typed(function: Command, like: Command | None = None) -> Command:
    """Return the function with a reader for each parameter of the command whose annotation has one."""
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
            return [read_one(part) for part in _parts(text)] if several else read_one(text)
        except (KeyError, ValueError):
            expected = f"{described}, or several separated by commas" if several else described
            raise InputError(f"--{name}: expected {expected}, got {text!r}") from None

    return read


def _parts(text: str) -> list[str]:
    """Split `a,b`, and also `[a,b]` and `['a','b']`, as lists are written elsewhere."""
    if (text[:1], text[-1:]) in (("[", "]"), ("(", ")")):
        return [part.strip().strip("'\"") for part in text[1:-1].split(",")]
    return [part.strip() for part in text.split(",")]
