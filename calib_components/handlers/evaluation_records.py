"""What an evaluation has measured of each case, in a file of its own, until all cases are measured."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calib_components.errors import reading, writing
from calib_components.handlers.evaluation_pictures import DrawnSlice

__all__ = ["read_record", "read_slice", "record_file", "write_record"]


def record_file(folder: str | os.PathLike, case: str) -> Path:
    """Return the file of a case; the case may have any name, however long."""
    return Path(folder) / f"{hashlib.sha256(os.fsencode(case)).hexdigest()[:32]}.pt"


def write_record(
    folder: str | os.PathLike, case: str, stored: Mapping[str, Sequence[torch.Tensor]], drawn: DrawnSlice, **notes: Any
) -> None:
    """Write what was measured of a case, completely or not at all.

    Args:
        folder: Folder of the records, which exists.
        case: Name of the case.
        stored: What each metric stores of it, by the name of the metric, as `CaseMetric.extend` takes it.
        drawn: The slice that may be drawn.
        **notes: Further entries, plain data.

    Raises:
        InputError: It cannot be written.
    """
    of_slice = {key: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for key, v in vars(drawn).items()}
    # Copies, since of a view torch.save writes all that it is a view of.
    alone = {name: [values.cpu().clone() for values in several] for name, several in stored.items()}
    with writing(record_file(folder, case)) as file:
        content = io.BytesIO()  # a full disk is no OSError to torch.save
        torch.save({"stored": alone, "slice": of_slice, **notes}, content)
        file.write_bytes(content.getvalue())


def read_record(folder: str | os.PathLike, case: str) -> dict[str, Any]:
    """Read what `write_record` wrote: `stored`, `slice` and the notes.

    Raises:
        InputError: The record is missing or broken.
    """
    with reading(record_file(folder, case), "what was measured of a case") as file:
        return torch.load(file, weights_only=True)


def read_slice(folder: str | os.PathLike, case: str) -> DrawnSlice:
    """Read the slice of a case that may be drawn. Arguments and errors as in `read_record`."""
    of_slice: dict[str, Any] = {}
    for key, value in read_record(folder, case)["slice"].items():
        of_slice[key] = value.numpy() if isinstance(value, torch.Tensor) else value
    return DrawnSlice(**of_slice)
