"""What all command lines share: values as typed, no work before every option is known, errors in one line."""

from __future__ import annotations

import ast
import inspect
import io
import json
import math
import re
import signal
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import fire
from fire.parser import DefaultParseValue

from calib_components.errors import InputError, nearest, printable

Command = Callable[..., None]
Commands = Command | Mapping[str, "Commands"]


def _number(text: str) -> float:
    """The number as typed: an int stays one, so that files that record it do not show 1.0 for 1."""
    try:
        return int(text)
    except ValueError:
        if math.isfinite(number := float(text)):
            return number
        raise


def _value(text: str) -> Any:
    """The Python literal, or else the text; Fire would take what follows a # for a comment."""
    if "#" not in text:
        value = DefaultParseValue(text)
    else:
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            value = text
    json.dumps(value)  # as it is recorded: a TypeError for {a, b}, which is a set
    return value


def _path(text: str) -> Path:
    if not text:  # such as an unset variable of a shell, which Path would take for the current folder
        raise ValueError
    # A shell leaves the ~ of --out=~/results as it is.
    return Path(text).expanduser() if text.startswith("~/") else Path(text)


# How the text of an option is read, by the annotation of the parameter. Fire would read any text as a Python literal
# if it can: the folder 2024_11_25 would become 20241125, and 1e3 would become 1000.0.
READERS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    str: ("text", str),
    Path: ("a path", _path),
    int: ("a whole number", int),
    float: ("a number", _number),
    bool: ("true or false", lambda text: {"true": True, "false": False}[text.lower()]),
}


def run(name: str, commands: Commands) -> None:
    """Run one command, or one of several, with the arguments of the process.

    Interrupts and errors in arguments or files end the process with one line on standard error and exit code 1.

    Args:
        name: Name of the command line in messages.
        commands: The command; or several by their names, of which some may again be several. Options are read by the
            annotations of their parameters.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):  # commands print names of files, which need not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        path, command, arguments = _choose(commands, sys.argv[1:])
        if {"--help", "-h"} & set(arguments):
            fire.Fire(commands, [*path, "--", "--help"], name)
        elif isinstance(command, Mapping):
            fire.Fire(commands, path, name)  # lists the commands
        else:
            values, options = _read_options(" ".join([name, *path]), command, arguments)
            command(*values, **options)
    except InputError as error:
        sys.exit(f"{name}: {printable(error)}")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or error
        sys.exit(f"{name}: {printable(f'{where}expected a file or folder that can be read and written, got {reason}')}")
    except KeyboardInterrupt:
        sys.exit(f"{name}: interrupted; run the same command again to continue")


def _choose(commands: Commands, arguments: list[str]) -> tuple[list[str], Commands, list[str]]:
    """Return the names of the chosen command and of the groups it is in, the command, and the rest of the arguments."""
    path: list[str] = []
    while isinstance(commands, Mapping) and arguments and arguments[0] not in ("--help", "-h"):
        name = arguments[0].replace("-", "_")
        if name not in commands:
            raise InputError(
                f"{arguments[0]}: expected a command, {', '.join(commands)}, got no such command"
                f"{nearest(name, commands)}"
            )
        path, commands, arguments = [*path, name], commands[name], arguments[1:]
    return path, commands, arguments


def _read_options(name: str, command: Command, arguments: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Read the arguments of a command: values in the order of its parameters, `--option value` and `--option=value`.

    Returns:
        The values of a parameter that takes any number of them, such as `*folders: Path`, and the options by name. A
        command with such a parameter needs at least one, and takes all else by name only.
    """
    parameters = inspect.signature(command).parameters
    several = next((p.name for p in parameters.values() if p.kind is p.VAR_POSITIONAL), None)
    names = [p.name for p in parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    accepts_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = get_type_hints(command)
    texts: dict[str, str] = {}
    values = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not _is_option(argument):
            values.append(argument)
            continue
        shown, has_value, text = argument.partition("=")
        option = _option(shown, names, accepts_any)
        if option in texts:
            raise InputError(f"{shown}: expected once, got twice")
        if not has_value and rest and not _is_option(rest[0]):
            text = rest.pop(0)
        elif not has_value:
            if hints.get(option, bool) is not bool:
                raise InputError(f"{shown}: expected a value, got none")
            text = "True"
        texts[option] = text
    by_position = [option for option in names if parameters[option].kind is not inspect.Parameter.KEYWORD_ONLY]
    left = [option for option in by_position if option not in texts]
    texts.update(zip(left, values, strict=False))
    further = values[len(left) :]
    if several is None and further:
        most = f"at most {len(by_position)} values without an option, {', '.join(by_position)}"
        expected = most if by_position else "no value without an option"
        raise InputError(f"{further[0]}: expected {expected}, got one more; quote a value that has spaces")
    for option in names:
        if option not in texts and parameters[option].default is inspect.Parameter.empty:
            raise InputError(f"--{option}: expected a value, got none; see {name} --help")
    if several is not None and not further:
        raise InputError(f"{several}: expected at least one value, got none; see {name} --help")
    read_several = [_reader(several, hints.get(several))(text) for text in further] if several is not None else []
    return read_several, {option: _reader(f"--{option}", hints.get(option))(text) for option, text in texts.items()}


def _is_option(argument: str) -> bool:
    return re.match("--?[a-zA-Z]|--", argument) is not None


def _option(shown: str, names: Sequence[str], accepts_any: bool) -> str:
    """Return the name of an option from how it was typed; `-o` is short for the only one that starts with o."""
    option = shown.lstrip("-").replace("-", "_")
    if option in names:
        return option
    if re.fullmatch("-[a-zA-Z]", shown):
        short = [name for name in names if name.startswith(option)]
        if len(short) == 1:
            return short[0]
        if short:
            raise InputError(f"{shown}: expected one option, got one that may be --{' or --'.join(short)}")
    if accepts_any and option:
        return option
    raise InputError(f"{shown}: expected an option, got no such option{nearest(option, names, '--')}")


def _reader(shown: str, annotation: Any) -> Callable[[str], Any]:
    """Return what reads the text of an option, named so in messages; of other types, a Python literal if it can be."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(argument for argument in get_args(annotation) if argument is not type(None))
    several = get_origin(annotation) is Sequence
    kind = get_args(annotation)[0] if several else annotation
    described, read_one = READERS.get(kind, ("a value such as 1, text, [1, 2] or {a: 1}", _value))

    def read(text: str) -> Any:
        try:
            return [read_one(part) for part in _parts(text)] if several else read_one(text)
        except (KeyError, TypeError, ValueError, RecursionError, MemoryError):  # the last two from nested brackets
            expected = f"{described}, or several separated by commas" if several else described
            raise InputError(f"{shown}: expected {expected}, got {text!r:.60}") from None

    return read


def _parts(text: str) -> list[str]:
    """Split `a,b`, and also `[a,b]` and `['a','b']`, as lists are written elsewhere."""
    if (text[:1], text[-1:]) in (("[", "]"), ("(", ")")):
        return [part.strip().strip("'\"") for part in text[1:-1].split(",")]
    return [part.strip() for part in text.split(",")]
