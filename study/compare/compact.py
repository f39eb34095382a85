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
# Of a structure, what follows from which DSC and volume
SOURCES = (
    ("confidence", "expected_dsc", "expected_volume"),
    ("accuracy", "dsc", "true_volume"),
)
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
    tables["cases"] = with_confidence(tables["cases"])
    with reading(folder / COMPACT, "what compact results are about") as file:
        return Comparison(**tables, about=json.loads(file.read_bytes()))


def with_confidence(cases: pd.DataFrame) -> pd.DataFrame:
    """Return cases with mean confidence and accuracy of the voxels that are predicted as each
    structure, which results of earlier releases lack.

    The numerators of the expected and the true DSC are twice the sum of the probabilities of these
    voxels, and twice the number of them that are right.
    """
    added = {}
    for name in (each.removeprefix("dsc_") for each in cases if each.startswith("dsc_")):
        if f"expected_dsc_{name}" not in cases or f"confidence_{name}" in cases:
            continue
        segmented = cases[f"segmented_volume_{name}"].where(lambda volume: volume > 0)
        for measure, dsc, volume in SOURCES:
            both = segmented + cases[f"{volume}_{name}"]
            added[f"{measure}_{name}"] = cases[f"{dsc}_{name}"] * both / (2 * segmented)
    return pd.concat([cases, pd.DataFrame(added, cases.index)], axis=1)
