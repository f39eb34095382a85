"""Configurations of a bundle, read and checked before a command runs them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from calib_components.bundle import check_values, read_as_typed
from calib_components.errors import InputError, error_line, reading
from calib_components.handlers.fingerprint import fingerprint

__all__ = ["checked_settings", "explaining", "read_configs"]


def read_configs(files: Sequence[Path]) -> ConfigParser:
    """Read configuration files and join them.

    Raises:
        InputError: A file is missing or is no configuration, or they do not fit together.
    """
    for file in files:
        with reading(file):
            content = ConfigParser.load_config_file(file)
        if not isinstance(content, dict):
            raise InputError(f"{file}: expected ids and their values, such as num_classes: 3, got {content!r:.50}")
    parser = ConfigParser()
    with reading(files[-1], f"ids that can be joined with those of {files[0].name}"):
        parser.read_config([str(file) for file in files])
    return parser


def checked_settings(parser: ConfigParser, ids: Mapping[str, tuple[str, ...]], configs: Path) -> dict[str, Any]:
    """Return the fingerprint of a run, and check the values of its options. The device of the parser becomes the CPU.

    Args:
        parser: Configuration after overrides.
        ids: See `calib_components.handlers.fingerprint.fingerprint`.
        configs: Folder of the configuration files, for messages.

    Raises:
        InputError: A value is not suitable.
    """
    with explaining(configs):
        read_as_typed(parser)
        settings = fingerprint(parser.get(), ids)
        parser["device"] = "cpu"  # planning uses no GPU; a run checks its own device
        check_values(parser)
        return settings


@contextmanager
def explaining(configs: Path) -> Iterator[None]:
    """Turn what goes wrong while a configuration is worked out into an `InputError` of one line.

    Args:
        configs: Folder of the configuration files.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # MONAI wraps what goes wrong
        line = error_line(error) or f"{configs}: expected settings that can be worked out, got {error}"
        raise InputError(line) from error
