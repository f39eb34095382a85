"""Records: what an evaluation has measured of each case, in a file of its own, until all cases are measured."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.serialization import safe_globals

from calib_components import __version__
from calib_components.errors import InputError, make_folder, reading
from calib_components.handlers.weights import save
from calib_components.inference.images import shard_of
from calib_components.metrics import CalibrationBins, ThresholdCounts


class EvaluationRecords:
    """What is measured of each case, in a file of its own in the output folder until the evaluation is written.

    A record counts if it has the stamp of this evaluation and is newer than the files of its case.

    Args:
        output_dir: Folder of the evaluation.
        cases: An item for each case, such as those of `read_datalist`: its name `case`, its `patient`, and its files.
        stamp: Text that differs for other weights or options, see `calib_components.inference.run_stamp`.
        files: Keys of an item whose values are a file or several.

    Raises:
        InputError: Two cases have the same name.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        cases: Sequence[Mapping[str, Any]],
        stamp: str = "",
        files: Sequence[str] = ("image", "label"),
    ) -> None:
        self.output_dir, self.folder = Path(output_dir), Path(output_dir) / ".records"
        self.cases, self.stamp, self.files = {Path(item["case"]).name: item for item in cases}, stamp, files
        for name, count in Counter(Path(item["case"]).name for item in cases).items():
            if count > 1:
                raise InputError(f"{count} cases are called {name}. Their results would replace each other.")

    def to_measure(self, shard: str | None = None, skip_existing: bool = False) -> list[Mapping[str, Any]]:
        """Return the items of the cases to measure.

        Args:
            shard: `"i/n"` for the `i`-th of `n` shares of the cases; None for all of them.
            skip_existing: Whether to leave out cases that have a record.

        Raises:
            InputError: `shard` has another form, or is a share without cases.
        """
        if not (names := shard_of([*self.cases], shard)):
            raise InputError(f"shard {shard} has none of the {len(self.cases)} cases. Use fewer shards.")
        missing = [name for name in names if not (skip_existing and self.has(name))]
        if skip_existing:
            logging.getLogger(__name__).info("%d of %d cases have a record.", len(names) - len(missing), len(names))
        # Without a case, an engine does not run, and nothing would be written: the last case is measured again.
        return [self.cases[name] for name in missing or names[-1:]]

    def has(self, case: str) -> bool:
        """Whether a case has a record of this evaluation."""
        if not (file := self._file(case)).is_file():
            return False
        values = [self.cases[case].get(key, []) for key in self.files]
        sources = [source for v in values for source in ([v] if isinstance(v, str | os.PathLike) else v)]
        return all(os.stat(source).st_mtime_ns <= file.stat().st_mtime_ns for source in sources)

    def write(self, case: str, record: Mapping[str, Any]) -> None:
        """Write the record of a case, see `record_case`."""
        make_folder(self.folder)
        save(record, self._file(case))

    def read(self, case: str) -> dict[str, Any]:
        """Read the record of a case."""
        with reading(self._file(case)) as file, safe_globals([CalibrationBins, ThresholdCounts]):
            return torch.load(file, "cpu", weights_only=True)

    def _file(self, case: str) -> Path:
        name = b"\0".join(map(os.fsencode, (__version__, self.stamp, case)))  # may be long
        return self.folder / f"{hashlib.sha256(name).hexdigest()[:32]}.pt"
