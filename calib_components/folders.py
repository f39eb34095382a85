"""Output folders: one run writes to a folder at a time, and a record says what it holds.

The hidden folder `.run` in it has the locks, which the system releases when a process ends, however
it ends, and a record for each kind of results: the weights, options and inputs of the run, and the
files that it writes.
"""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from calib_components.errors import InputError, make_folder, reading, writing

RUN = ".run"
REMEDY = "Pass --overwrite true to replace {}, or choose another folder."


@dataclass(eq=False)
class OutputFolder:
    """A folder that one run writes to, or several shards of the same run.

    Args:
        path: The folder.
        kind: Kind of results, such as "evaluation"; runs that write the same files have the same
            kind. Empty: the folder is locked, and nothing recorded.
        run: Weights, options and inputs by name, as JSON data or paths.
        shard: `"i/n"` for a run that does the `i`-th of `n` shares of the work; None for all.
        overwrite: Whether to replace results of other runs, and files that no run recorded.
        alone: Whether the folder may hold no other files, unless `overwrite` is set.
    """

    path: Path
    kind: str = ""
    run: Mapping[str, Any] = field(default_factory=dict)
    shard: str | None = None
    overwrite: bool = False
    alone: bool = False
    _lock: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        self.run = json.loads(json.dumps(self.run, default=_as_text))

    def __getstate__(self) -> dict[str, Any]:
        """Return what worker processes get: all but the lock."""
        return {**self.__dict__, "_lock": None}

    def claim(self, files: Iterable[str] = (), keep: bool = False) -> OutputFolder:
        """Lock the folder until `release`, or the end of the process, and record the run.

        Args:
            files: Names of the files that it writes, relative to the folder.
            keep: Whether other files of the same run stay, see `remove_stale`.

        Raises:
            InputError: Another process writes to the folder, unless both are different shards of
                the same run; the folder holds something else and `overwrite` is not set; or it
                cannot be written.
        """
        files = [*files]
        if not (self.path / RUN).exists():  # nothing is left in a folder that is refused
            self._check(files)
        make_folder(self.path / RUN)
        with self.locked("claim"):
            self._lock_out_others()
            try:
                self._check(files)
                if self.kind:
                    self._record(files, keep)
            except BaseException:
                self.release()
                raise
        return self

    def release(self) -> None:
        """Let other runs write to the folder."""
        if self._lock is not None:
            self._lock.release(force=True)
            self._lock = None

    def __enter__(self) -> OutputFolder:
        """Return the folder, which `claim` has locked."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release it."""
        self.release()

    def __del__(self) -> None:
        """Release what a failed run holds, unless another one of this process holds it, too."""
        if self._lock is not None:
            self._lock.release()

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Wait until no other shard does what has this name, and keep others from it."""
        lock = _acquired(self.path / RUN / f".{name}.lock", -1)
        try:
            yield
        finally:
            lock.release()

    def is_of_run(self) -> bool:
        """Whether the folder holds results of the same weights, options and inputs."""
        return self._read().get("run") == self.run

    def files(self) -> list[str]:
        """Return the names of the files of this run, also of its other shards."""
        return self._read().get("files", [])

    def remove_stale(self) -> None:
        """Remove the files that earlier runs wrote and this one does not."""
        with self.locked("claim"):
            record = self._read()
            for name in {*record.get("stale", ())} - {*record.get("files", ())}:
                if not Path(name).is_absolute() and ".." not in Path(name).parts:
                    _remove(self.path / name)
            if record:
                self._write({**record, "stale": []})

    def _lock_out_others(self) -> None:
        """Take the lock of this shard, or of the run, unless others are held that exclude it."""
        number, _, count = str(self.shard or "1/1").partition("/")
        own = self.path / RUN / f".{number}_of_{count}.owner"
        for file in own.parent.glob("*.owner"):
            is_shard = file != own and file.name.endswith(f"_of_{count}.owner")
            if not (is_shard and self.is_of_run()):
                _acquired(file, 0, is_singleton=True).release()
        # Of this process: a folder may be two of those that a run writes to
        self._lock = _acquired(own, 0, is_singleton=True)

    def _check(self, files: Sequence[str]) -> None:
        """Refuse results of another run, and files that no run recorded."""
        if self.overwrite or not self.kind:
            return
        record = self._read()
        recorded = {*record.get("files", ()), *record.get("stale", ())}
        if any((self.path / name).exists() for name in recorded):  # else it ended before
            self._check_run(record["run"])
        for name in {*files} - recorded:
            if (self.path / name).exists():
                raise InputError(
                    f"{self.path / name} exists, and is not of this run. {REMEDY.format('it')}"
                )
        if self.alone and not record and {*self.path.glob("*")} - {self.path / RUN}:
            raise InputError(
                f"Output folder is not empty: {self.path}. Pass --overwrite true to write into it."
            )

    def _check_run(self, before: Mapping[str, Any]) -> None:
        for name in {**before, **self.run}:
            if before.get(name) != self.run.get(name):
                texts = [textwrap.shorten(str(run.get(name)), 200) for run in (before, self.run)]
                raise InputError(
                    f"{self.path} holds results of {name} {texts[0]}, not {texts[1]}. "
                    + REMEDY.format("them")
                )

    def _record(self, files: Sequence[str], keep: bool) -> None:
        earlier = [self._read()]
        known, stale = {*files}, {*earlier[0].get("stale", ())}
        if keep and self.is_of_run():
            known |= {*earlier.pop()["files"]}
        for file in (self.path / RUN).glob("*.json") if self.alone else ():
            if file != self._file():
                earlier.append(_read_record(file))
                file.unlink()
        for record in earlier:
            stale |= {*record.get("files", ()), *record.get("stale", ())}
        self._write({"run": self.run, "files": sorted(known), "stale": sorted(stale)})

    def _file(self) -> Path:
        return self.path / RUN / f".{self.kind}.json"

    def _read(self) -> dict[str, Any]:
        return _read_record(self._file()) if self._file().exists() else {}

    def _write(self, record: Mapping[str, Any]) -> None:
        with writing(self._file()) as unfinished:
            unfinished.write_text(json.dumps(record))


def _acquired(file: Path, timeout: float, is_singleton: bool = False) -> FileLock:
    """Return a lock of a folder, held; `timeout` as for filelock."""
    lock = FileLock(file, thread_local=False, is_singleton=is_singleton)
    folder = file.parent.parent
    try:
        lock.acquire(timeout)
    except Timeout:
        raise InputError(
            f"{folder}: another run writes to this folder. Wait for its end, or choose another."
        ) from None
    except OSError as error:
        raise InputError(f"{folder}: cannot lock it: {error.strerror or error}.") from error
    return lock


def _as_text(value: Any) -> str:
    return str(value.resolve() if isinstance(value, Path) else value)


def _read_record(file: Path) -> dict[str, Any]:
    with reading(file, "the record of a run"):
        record = json.loads(file.read_bytes())
        return {"run": record["run"], "files": record["files"], "stale": record["stale"]}


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
