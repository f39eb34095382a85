"""Output folders: one run writes to a folder at a time, and a record says what it holds.

The hidden folder `.run` in it has the locks, which the system releases when a process ends, however
it ends, and the record: the weights, options and inputs of each run, and the files that it writes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from calib_components.errors import InputError, make_folder, reading, writing
from calib_workflows.runs import changes

_held: dict[Path, Any] = {}  # the locks of this process, by their files


@dataclass
class OutputFolder(AbstractContextManager):
    """A folder that one run writes to, or several shards of the same run.

    Results of another run that writes files of the same names are removed if `overwrite` is set,
    and refused otherwise; so are such files that no run recorded. Runs that write other files may
    share the folder, one after the other.

    Args:
        path: The folder.
        run: Weights, options and inputs by name, as JSON data or paths.
        shard: `"i/n"` for a run that does the `i`-th of `n` shares of the work; None for all.
        overwrite: Whether results of others are removed.
    """

    path: Path
    run: Mapping[str, Any] = field(default_factory=dict)
    shard: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        self.run = json.loads(json.dumps(self.run, default=os.path.realpath))
        self.hidden = self.path.absolute() / ".run"
        self.record = self.hidden / ".record.json"
        self.lock = self.hidden / f".{self.shard or '1/1'}.lock".replace("/", "_of_")

    def claim(self, files: Collection[str] = ()) -> OutputFolder:
        """Lock the folder until `release`, the end of a context or that of the process, remove what
        is not of this run, and record it.

        Args:
            files: Names of all files of the run, also of its other shards, relative to the folder;
                earlier ones of the same run are removed. Without any, the folder is locked alone.

        Raises:
            InputError: See `check`; or the folder cannot be written.
        """
        self.check(files)  # a folder that is refused stays as it is
        with self.locked():
            stale = self.check(files)
            if files:
                self._record({*files}, stale)
            if self.lock not in _held:
                _held[self.lock] = _acquire(self.lock, 0).lock
        return self

    def release(self) -> None:
        """Let other runs write to the folder."""
        if self.lock in _held:
            _held.pop(self.lock).release()

    def __exit__(self, *_: object) -> None:
        """Release the folder."""
        self.release()

    def locked(self) -> AbstractContextManager:
        """Return a context in which no other process is, and none claims the folder."""
        make_folder(self.hidden)
        return _acquire(self.hidden / ".claim", -1)

    def check(self, files: Collection[str]) -> set[str]:
        """Return the names of the files that `claim` would remove.

        Raises:
            InputError: The run reads the folder, another process writes to it, or it holds results
                of others and `overwrite` is not set.
        """
        if json.dumps(os.path.realpath(self.path)) in json.dumps(self.run):
            raise InputError(f"{self.path} holds files to read. Choose another output folder.")
        self._check_locks()
        names, own = {*files}, self.files()
        origins = dict.fromkeys(names - own, "no recorded run")
        for run, listed in self.runs():
            if run != self.run and listed & names:
                difference = next(iter(changes(run, self.run)), "other options")
                origins |= dict.fromkeys(listed, f"a run with {difference}")
        others = sorted(name for name in origins if (self.path / name).exists())
        if others and not self.overwrite:
            raise InputError(
                f"{self.path / others[0]} is of {origins[others[0]]}. Pass --overwrite true to"
                " replace what is there, or choose another folder."
            )
        return {*others, *own - names}

    def files(self) -> set[str]:
        """Return the names of the files that this same run recorded; none of another one."""
        return {name for run, listed in self.runs() if run == self.run for name in listed}

    def _check_locks(self) -> None:
        """Refuse a folder that another process writes to, unless it does another shard of this."""
        count = self.lock.name.partition("_of_")[2]
        shards = {*self.hidden.glob(f"*_of_{count}")} - {self.lock} if self.files() else set()
        for file in {*self.hidden.glob("*.lock")} - shards - _held.keys():
            _acquire(file, 0).lock.release()

    def runs(self) -> list[tuple[dict[str, Any], set[str]]]:
        """Return each recorded run and its files."""
        if not self.record.exists():
            return []
        with reading(self.record, "the record of what the folder holds"):
            records = json.loads(self.record.read_bytes())
            # A name with .. stays in the folder
            return [
                (run, {os.path.relpath(f"/{name}", "/") for name in names})
                for run, names in records
            ]

    def _record(self, names: set[str], stale: set[str]) -> None:
        """Record the run, once files are removed that are not of it."""
        kept = [
            (run, sorted(listed))
            for run, listed in self.runs()
            if run != self.run and not listed & names
        ]
        with writing(self.record) as unfinished:
            for name in stale:
                (self.path / name).unlink(missing_ok=True)
            unfinished.write_text(json.dumps([*kept, (self.run, sorted(names))]))


@contextmanager
def replacing(
    folder: Path, files: Sequence[str], claim: Callable[[Sequence[str]], object] = lambda _: None
) -> Iterator[Path]:
    """Give a hidden folder for files, which take the place of those in a folder at the end.

    A process that fails or is killed meanwhile leaves the earlier ones; one that is killed while
    they are replaced leaves files of the new ones without the last.

    Args:
        folder: The folder.
        files: Names of all files, relative to it; what is not in the hidden folder is removed.
        claim: Is called with them before they are replaced, see `OutputFolder.claim`.

    Raises:
        InputError: The folder cannot be written.
    """
    unfinished = folder / ".unfinished"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield unfinished
        claim(files)
        for name in reversed(files):
            (folder / name).unlink(missing_ok=True)
        for name in files:
            if (unfinished / name).is_file():
                (folder / name).parent.mkdir(exist_ok=True)
                (unfinished / name).replace(folder / name)
    except OSError as error:
        raise InputError(
            f"Results cannot be written to {folder}: {error.strerror or error}."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _acquire(file: Path, timeout: float) -> Any:
    """Take a lock of a folder, in `timeout` seconds; -1 for any time."""
    with reading(file, "the lock of the folder"):
        try:
            return FileLock(file, thread_local=False).acquire(timeout)
        except Timeout:
            raise InputError(
                f"{file.parent.parent}: another run writes to this folder. Wait for its end, or"
                " choose another."
            ) from None
