"""Command lines: Fire calls functions, whose annotations say how options are read; options of
several commands.
"""

from __future__ import annotations

import functools
import inspect
import re
import signal
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import fire
from fire.decorators import SetParseFn
from fire.parser import DefaultParseValue

from calib_components.errors import InputError, printable

Command = Callable[..., None]
Commands = Command | Mapping[str, "Commands"]


def run(name: str, commands: Commands) -> None:
    """Run a command with the arguments of the process. It starts after all of its options were
    read.

    An unknown option and an `InputError` or `OSError` end the process with exit code 2; the latter
    two print one line.

    Args:
        name: Name of the command line in messages.
        commands: The command; or commands, or groups of them, by name.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    chosen: list[Callable[[], None]] = []
    try:
        if {"--help", "-h"} & {*sys.argv[1:]}:
            fire.Fire(commands, [*_command_words(commands, sys.argv[1:]), "--", "--help"], name)
        else:
            fire.Fire(_deferred(commands, chosen), name=name)
            for call in chosen:
                call()
    except (InputError, OSError) as error:
        print(f"{name}: {printable(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(f"{name}: interrupted")


def _command_words(commands: Commands, words: Sequence[str]) -> list[str]:
    """Return the first words, as far as they name groups and a command."""
    if not isinstance(commands, Mapping) or not words or words[0] not in commands:
        return []
    return [words[0], *_command_words(commands[words[0]], words[1:])]


def _deferred(commands: Commands, chosen: list[Callable[[], None]]) -> Any:
    """Replace each command by a function that records its call: Fire finds unknown options only
    after a call.
    """
    if isinstance(commands, Mapping):
        return {name: _deferred(command, chosen) for name, command in commands.items()}

    @functools.wraps(commands)
    def record(*arguments: Any, **options: Any) -> None:
        if spec.varargs and not arguments:
            raise InputError(f"{spec.varargs.upper()} is missing; see --help.")
        chosen.append(functools.partial(commands, *arguments, **options))

    spec = inspect.getfullargspec(commands)
    for option, annotation in get_type_hints(commands).items():
        if option != spec.varkw:  # Fire does not know the values of *arguments by name
            record = SetParseFn(
                _reader(option, annotation), *([] if option == spec.varargs else [option])
            )(record)
    return record


def _reader(name: str, annotation: Any) -> Callable[[str], Any]:
    """Return what reads the text of an option."""
    annotation = (
        get_args(annotation)[0]
        if get_origin(annotation) in (Union, types.UnionType)
        else annotation
    )
    several = get_origin(annotation) is Sequence
    read_one = READERS.get(get_args(annotation)[0] if several else annotation, DefaultParseValue)

    def read(text: str) -> Any:
        try:
            return (
                [read_one(part.strip(" '\"")) for part in text.strip("[]").split(",")]
                if several
                else read_one(text)
            )
        except (KeyError, ValueError):
            raise InputError(f"--{name}: cannot read {text!r}; see --help.") from None

    return read


def _path(text: str) -> Path:
    if not text:  # an unset variable of a shell, which Path would take for the current folder
        raise ValueError
    return Path(text).expanduser() if text.startswith("~/") else Path(text)


READERS: Mapping[Any, Callable[[str], Any]] = {  # other annotations: a Python literal, or text
    str: str,
    Path: _path,
    int: int,
    float: lambda text: int(text) if text.isdigit() else float(text),  # recorded as 1, not as 1.0
    bool: lambda text: {"true": True, "false": False}[text.lower()],
}


def parse_structures(
    texts: Sequence[str], option: str = "--structures"
) -> dict[str, frozenset[int]]:
    """Read the label codes of each structure from an option: `name=code`, or `name=code+code` for
    several.
    """
    if not texts:
        raise InputError(f"{option} names no structure. Pass structures such as liver=1.")
    structures: dict[str, frozenset[int]] = {}
    for text in texts:
        if not (match := re.fullmatch(r"(.*\S.*)=(\d+(?:\+\d+)*)", text)):
            raise InputError(
                f"{option}: {text!r} is not name=code or name=code+code, such as WT=1+2+4."
            )
        name, codes = match[1], frozenset(map(int, match[2].split("+")))
        if 0 in codes or name.lower() == "background":
            raise InputError(
                f"{option}: {text!r} is the background, which is class 0. Name the structures only."
            )
        if structures.setdefault(name, codes) is not codes:
            raise InputError(f"{option}: {name} occurs twice.")
    return structures


def patients_of(
    cases: Sequence[str], pattern: str | None, option: str = "--patient_pattern"
) -> dict[str, str]:
    """Find the patient of each case, by the part of its name that a regular expression matches;
    None: all of it.

    Examples:
        >>> patients_of(["patient001_frame01", "patient001_frame12"], r"patient\\d+")
        {'patient001_frame01': 'patient001', 'patient001_frame12': 'patient001'}
    """
    try:
        found = {case: re.search(".+" if pattern is None else pattern, case) for case in cases}
    except re.error as error:
        raise InputError(f"{option}: {pattern!r} is no regular expression: {error}.") from None
    for case, match in found.items():
        if match is None or not match[0]:
            raise InputError(f"{option}: {pattern!r} matches no part of the name {case}.")
    return {case: match[0] for case, match in found.items() if match}
