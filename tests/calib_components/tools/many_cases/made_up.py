"""A run of made-up cases, which writes one file for each."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calib_components.errors import InputError
from calib_components.tools.many_cases.bundle_run import BundleRun


@dataclass(frozen=True)
class MadeUpCase:
    name: str
    does: str = "finish"


@dataclass(frozen=True)
class MadeUpRun(BundleRun):
    """Does what the case says, and notes it in `started`, and its process in `process`."""

    def names(self, case: MadeUpCase) -> list[str]:
        return [f"{case.name}.txt"]

    def sources(self, case: MadeUpCase) -> list[Path]:
        return []

    def configure(self, **changes: Any) -> Any:
        return None

    def run(self, case: MadeUpCase, config: Any) -> None:
        with open(self.output_dir / "started", "a") as file:
            file.write(f"{case.name}\n")
        if case.does == "raise":
            raise InputError(f"{case.name}: expected a good case, got a bad one")
        if case.does == "die":
            os._exit(3)
        (self.output_dir / "process").write_text(str(os.getpid()))
        while case.does == "wait" and not (self.output_dir / "go").exists():
            time.sleep(0.05)
        (self.output_dir / f"{case.name}.txt").touch()


def made_up(folder: Path) -> MadeUpRun:
    folder.mkdir(exist_ok=True)
    return MadeUpRun((), "{}", folder, "")


def started(run: MadeUpRun) -> list[str]:
    return (run.output_dir / "started").read_text().split()
