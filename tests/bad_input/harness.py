"""What the tables of bad input share: commands run as typed, and what they leave in a folder."""

from __future__ import annotations

import contextlib
import hashlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from calib_components.tools import cli


class Outcome(NamedTuple):
    """What a user sees of a command that has ended."""

    code: int
    out: str
    err: str


def run_as_typed(name: str, commands: cli.Commands, argv: Sequence[object]) -> Outcome:
    """Run a command in this process, as `cli.run` does with these arguments."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", [name, *map(str, argv)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.run(name, commands)
        except SystemExit as end:  # Python prints a text as it ends, and then the code is 1
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
    return Outcome(code, out.getvalue(), err.getvalue())


def snapshot(folder: Path) -> dict[str, str]:
    """Return the hash of each file below a folder, and where links point, by their names relative to it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = f"-> {path.readlink()}"
        elif path.is_file():
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[str(path.relative_to(folder))] = "folder"
    return found
