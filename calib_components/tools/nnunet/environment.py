"""The folders that environment variables of nnU-Net name, and its modules where it is installed."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType

from calib_components.errors import InputError

__all__ = ["folder_of", "nnunet_module"]


def folder_of(variable: str) -> Path:
    """Return the folder that an environment variable of nnU-Net names.

    Raises:
        InputError: It is not set, or there is no such folder.
    """
    if not (value := os.environ.get(variable)):
        raise InputError(f"{variable}: expected nnU-Net's environment variable, the path of a folder, got none")
    if not Path(value).is_dir():
        raise InputError(f"{variable}: expected the path of a folder, got {value}, which is no folder")
    return Path(value)


def nnunet_module(name: str) -> ModuleType:
    """Import a module of nnU-Net, such as `utilities.label_handling`, where it is needed: the import takes seconds.

    Raises:
        InputError: nnU-Net is not installed.
    """
    try:
        return importlib.import_module(f"nnunetv2.{name}")
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name}: expected to be installed, got none; install the extra, in a clone: pip install -e "
            '".[nnunet]"'
        ) from error
