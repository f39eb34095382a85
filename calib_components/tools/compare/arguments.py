"""Arguments of a comparison, checked before anything is planned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from calib_components.data.facts import EVALUATED
from calib_components.errors import InputError
from calib_components.options import PATH
from calib_components.tools.compare.cell_settings import is_set_name

__all__ = ["check_path", "check_places", "is_device", "read_test_sets"]


def check_places(bundle: Path, dataset_dir: Path, out: Path, work: Path, datalist: Path | None) -> None:
    """Check the places that a comparison reads and writes.

    Raises:
        InputError: One is not suitable.
    """
    places = {"bundle": bundle, "dataset_dir": dataset_dir, "out": out, "work": work, "datalist": datalist or Path()}
    for name, path in places.items():
        check_path(name, path)
    for name, folder in (("out", out), ("work", work)):
        if files := [path for path in (folder, *folder.parents) if path.is_file()]:
            raise InputError(f"--{name}: expected a folder, got the file {files[0]}")
    if work.resolve() == out.resolve():
        raise InputError(f"--work: expected another folder than --out, got {work}")
    if not (bundle / "configs" / "train.yaml").is_file():
        raise InputError(f"--bundle: expected a folder with configs/train.yaml, got {bundle}")


def check_path(name: str, path: Path) -> None:
    """Check that MONAI takes a path for what it is, and that it is one line of text.

    Raises:
        InputError: It is not so.
    """
    if str(path).startswith(EVALUATED) or not str(path).isprintable():
        raise InputError(f"--{name}: expected a path that does not start with $, @ or %, got {path}; write ./NAME")
    expected, is_right = PATH
    if not is_right(str(path)):
        raise InputError(f"--{name}: expected {expected}, got {path}")


def read_test_sets(texts: Sequence[str], dataset_dir: Path) -> dict[str, Path]:
    """Return the folder of each further test set by its name.

    Args:
        texts: `NAME=DIR` for each.
        dataset_dir: Folder of the prepared data of the training.

    Raises:
        InputError: A text is another one, or a name is not suitable or there twice.
    """
    folders: dict[str, Path] = {}
    for text in texts:
        name, equals, place = text.partition("=")
        if not (equals and place and is_set_name(name)):
            raise InputError(
                "--evaluate_on: expected NAME=DIR, where a NAME has up to 64 letters, digits, _, - and . and does not "
                f"start with ., got {text!r:.60}"
            )
        if name in folders:
            raise InputError(f"--evaluate_on: expected a name for each test set, got {name} twice")
        folder = Path(place)
        check_path("evaluate_on", folder)
        if folder.resolve() == dataset_dir.resolve():
            raise InputError(f"--evaluate_on: expected other data than --dataset_dir, got {folder}")
        folders[name] = folder
    return folders


def is_device(name: str) -> bool:
    """Whether PyTorch knows such a device."""
    try:
        torch.device(name)
    except RuntimeError:
        return False
    return True
