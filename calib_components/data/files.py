"""Files in folders that users give."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from pathlib import Path

from calib_components.errors import InputError

__all__ = ["files_below", "other_files"]

OF_THE_SYSTEM = (".DS_Store", "._", ".nfs", "Thumbs.db", "desktop.ini")  # how names of files begin that systems leave


def files_below(folder: str | os.PathLike) -> Iterator[Path]:
    """Give the files in a folder and its subfolders, folder by folder, without hidden files and folders.

    Links to folders are followed, but each folder is given once, also if links lead to it again or back to one around
    it. A link that leads nowhere counts as a file.

    Args:
        folder: The folder.

    Raises:
        InputError: It, or a folder in it, cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: expected a folder that can be read, got {error.strerror}")

    seen = set()
    for place, subfolders, names in os.walk(str(folder), onerror=refuse, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


def other_files(folder: Path, names: Container[str]) -> list[str]:
    """Return what else is in a folder, sorted; files that operating systems leave do not count.

    Args:
        folder: The folder.
        names: Names of its own files.
    """
    found = sorted(path.name for path in folder.iterdir())
    return [name for name in found if name not in names and not name.startswith(OF_THE_SYSTEM)]
