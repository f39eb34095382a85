"""The folders that environment variables of nnU-Net name, and its modules where it is installed."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType

from calib_components.errors import InputError


def folder_of(variable: str) -> Path:
    """Return the folder that an environment variable of nnU-Net names; `InputError` if there is none."""
    value = os.environ.get(variable, "")
    if not (value and Path(value).is_dir()):
        raise InputError(f"{variable} must name a folder, as nnU-Net's environment variable, got {value!r}.")
    return Path(value)


def nnunet_module(name: str) -> ModuleType:
    """Import a module of nnU-Net, such as `utilities.find_objects`, where it is needed: the import takes seconds."""
    try:
        return importlib.import_module(f"nnunetv2.{name}")
    except ModuleNotFoundError as error:
        raise InputError(f"No module {error.name}. Install the extra: pip install -e '.[nnunet]'") from error
