"""The compact form of the results of a comparison: five files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from calib_components.errors import make_folder, reading, writing
from study.compare.data import Comparison

COMPACT = "comparison.json"
TEXTS = ["method", "test_set", "case", "patient", "region", "leave_one_out", "warnings"]  # columns
# Tables
FILES = {"cases": ".csv.gz", "bins": ".csv.gz", "cells": ".csv", "temperatures": ".csv"}


def write_compact(comparison: Comparison, folder: Path) -> None:
    """Write a comparison as five files, from which `read_compact` gives the same tables.

    Numbers have six significant digits.
    """
    make_folder(folder)
    for name, suffix in FILES.items():
        table = getattr(comparison, name)
        if not table.empty:
            with writing(folder / f"{name}{suffix}") as file:
                compression: Any = {"method": "gzip", "mtime": 0} if suffix == ".csv.gz" else None
                table.to_csv(file, index=False, float_format="%.6g", compression=compression)
    with writing(folder / COMPACT) as file:
        file.write_text(json.dumps(comparison.about, indent=1) + "\n")


def read_compact(folder: Path) -> Comparison:
    """Read what `write_compact` wrote.

    Raises:
        InputError: A file is missing or broken.
    """
    tables = {}
    for name, suffix in FILES.items():
        file, tables[name] = folder / f"{name}{suffix}", pd.DataFrame()
        if name in ("cases", "bins") or file.exists():
            with reading(file, "a table of compact results"):
                types = dict.fromkeys(TEXTS, str)
                # A case may be called NA
                table = pd.read_csv(file, dtype=types, keep_default_na=False, na_values=[""])
            texts = table.columns.intersection(TEXTS)
            tables[name] = table.assign(**table[texts].fillna(""))
    with reading(folder / COMPACT, "what compact results are about") as file:
        return Comparison(**tables, about=json.loads(file.read_bytes()))
