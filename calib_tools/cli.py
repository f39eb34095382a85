"""Command lines: cyclopts calls functions, whose signatures and docstrings are their options and
help. Options that several commands have are read here as well.
"""

from __future__ import annotations

import inspect
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from cyclopts import App, CycloptsError, Parameter, Token, convert

from calib_components import __version__
from calib_components.errors import InputError, printable

Command = Callable[..., None]
Commands = Command | Mapping[str, "Commands"]
END_OF_CODES = 2**24  # from which on float32, as which volumes are read, skips whole numbers


def run(name: str, commands: Commands) -> None:
    """Run a command with the arguments of the process. It starts after all of its options were
    read.

    A mistake in the arguments, an `InputError` and an `OSError` end the process with one line and
    exit code 2.

    Args:
        name: Name of the command line in messages.
        commands: The command, a function; or commands, or groups of them, by name.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        command, arguments = parse(name, commands, sys.argv[1:])
        command(*arguments.args, **arguments.kwargs)
    except (CycloptsError, InputError, OSError) as error:
        print(f"{name}: {printable(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(f"{name}: interrupted")


def parse(
    name: str, commands: Commands, words: Iterable[str]
) -> tuple[Command, inspect.BoundArguments]:
    """Return the command that words call, and its arguments; see `run`."""
    command, arguments, _ = make_app(name, commands).parse_args(
        _join_booleans(words), exit_on_error=False, print_error=False
    )
    return command, arguments


def make_app(name: str, commands: Commands) -> App:
    """Return the command line of a command, or of commands and groups of them by name."""
    app = App(
        name=name,
        version=__version__,
        help_format="markdown",
        default_parameter=Parameter(
            converter=_read, name_transform=str, negative=(), json_dict=False, json_list=False
        ),
    )
    if isinstance(commands, Mapping):
        for word, command in commands.items():
            inner = make_app(word, command)
            if isinstance(command, Mapping):
                inner.help = f"Commands: {', '.join(command)}."
            app.command(inner)
    else:
        app.default(commands)
    return app


def _join_booleans(words: Iterable[str]) -> list[str]:
    """Return the words with `--option true` as `--option=true`: the value of a flag is optional."""
    joined: list[str] = []
    for word in words:
        if word.lower() in ("true", "false") and joined and re.fullmatch("--[^=]+", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _read(annotation: Any, tokens: Sequence[Token]) -> Any:
    """Read an option as its annotation says. The parts of a list are separated by commas."""
    if get_origin(annotation) is not Sequence:
        return _read_value(annotation, tokens[-1].value)
    (part_annotation,) = get_args(annotation)
    parts = [part for token in tokens for part in token.value.strip("[]").split(",")]
    return [_read_value(part_annotation, part.strip(" '\"")) for part in parts]


def _read_value(annotation: Any, text: str) -> Any:
    if annotation in (int, float):
        return annotation(text)  # cyclopts would round 1.5 to an integer
    if annotation is Path:
        if not text:  # an unset variable of a shell, which Path would take for the current folder
            raise ValueError("The path is empty.")
        return Path(os.path.expanduser(text))
    if annotation is Any or get_origin(annotation) is dict:
        from fire.parser import DefaultParseValue  # as monai.bundle reads its options

        return DefaultParseValue(text)
    return convert(annotation, [text])


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
        if not (match := re.fullmatch(r"([^=;\n]*[^=;\s][^=;\n]*)=(\d+(?:\+\d+)*)", text)):
            raise InputError(
                f"{option}: {text!r} is not name=code or name=code+code, such as WT=1+2+4. Commas"
                " separate structures."
            )
        name, codes = match[1], frozenset(map(int, match[2].split("+")))
        if max(codes) >= END_OF_CODES:
            raise InputError(
                f"{option}: {text!r} has a label code of 2^24 or more, which 32-bit floating point"
                " rounds. Give the structure another code in the label files."
            )
        if 0 in codes or name.lower() == "background":
            raise InputError(
                f"{option}: {text!r} is the background, which is class 0. Name the structures only."
            )
        if structures.setdefault(name, codes) is not codes:
            raise InputError(f"{option}: {name} occurs twice.")
    return structures
