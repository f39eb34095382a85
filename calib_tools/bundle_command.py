"""Commands that run a bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fire.parser import DefaultParseValue


def bundle_command(files: Sequence[Path], options: Mapping[str, Any]) -> list[str]:
    """Return a command that runs the configuration files of a bundle with options."""
    config_file = json.dumps(
        [str(file) for file in files], ensure_ascii=False, separators=(",", ":")
    )
    typed = [f"--{name}={_quoted(value)}" for name, value in options.items()]
    return ["python", "-m", "monai.bundle", "run", f"--config_file={config_file}", *typed]


def _quoted(value: Any) -> str:
    """Return a value as MONAI reads it from a command line, which is by Fire.

    Text that Fire would read as something else, such as a number, is quoted.
    """
    text = str(value)
    if isinstance(value, str | Path) and DefaultParseValue(text) != text:
        return json.dumps(text, ensure_ascii=False)
    return text
