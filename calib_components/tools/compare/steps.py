"""The steps of a cell: plain runs of the bundle, as commands that can be typed in a shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fire.parser import DefaultParseValue

__all__ = ["Step", "command"]


@dataclass(frozen=True)
class Step:
    """One run of the bundle.

    Attributes:
        name: What it does; its log is `NAME.log`.
        command: The command; that of a training resumes if it is run again.
        writes: The file that it writes last; None for a training.
        test_set: Name of the test set that it is for; empty where it is for the split that is compared.
        needs_all_folds: Whether it needs a temperature that is fitted to all folds of a run.
    """

    name: str
    command: list[str]
    writes: Path | None = None
    test_set: str = ""
    needs_all_folds: bool = False

    @property
    def shown(self) -> str:
        """The command as typed in a shell."""
        return _shown(self.command)


def command(files: Sequence[Path], options: Mapping[str, Any]) -> list[str]:
    """Return a command that runs a bundle.

    Args:
        files: Its configuration files.
        options: Ids that are overridden and their values.
    """
    config_file = "[" + ",".join(repr(str(file)) for file in files) + "]"
    typed = [f"--{name}={_typed(value)}" for name, value in options.items()]
    return ["python", "-m", "monai.bundle", "run", f"--config_file={config_file}", *typed]


def _typed(value: Any) -> str:
    """Return a value as it is typed for Fire: text that Fire would read as something else, such as a number, quoted."""
    text = str(value)
    return repr(text) if isinstance(value, str | Path) and DefaultParseValue(text) != text else text


def _shown(words: Sequence[str]) -> str:
    """Return the command as typed in a shell, with double quotes where they suffice."""
    plain = re.compile(r'[^"$`\\!]*')
    return " ".join(
        word if shlex.quote(word) == word else f'"{word}"' if plain.fullmatch(word) else shlex.quote(word)
        for word in words
    )
