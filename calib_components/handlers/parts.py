"""Tables of an evaluation with a row for each of several raters or networks, beside that of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from calib_components.metrics.measures import columns, measure_case
from calib_components.metrics.raters import RatedCase

ALL, AVERAGE = "all", "average"  # rows of all raters, and of the mean of all networks
TABLES = {"raters": ("rater", ALL), "members": ("member", AVERAGE)}
# Of a structure and rater: mean DSC with the other raters, and whether the rater's volume is
# between those with p > 0.95 and p > 0.05
RATERS_DSC, IN_RANGE = "raters_dsc", "volume_in_range"


def measure_raters(case: RatedCase) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Return the values of each rater, by column, and what the values of all have besides."""
    rows = {name: measure_case(each) for name, each in case.raters.items()}
    pairs = case.agreement()
    agreement = pairs.compute()
    everyone = {f"{RATERS_DSC}_{name}": dsc for name, dsc in agreement.items()}
    for structure in case.structures:
        with_others = pairs.matrix(structure).nanmean(1).tolist()
        for row, dsc in zip(rows.values(), with_others, strict=True):
            row[f"{RATERS_DSC}_{structure}"] = dsc
        if case.probabilities is not None:
            column = f"{IN_RANGE}_{structure}"
            for row in rows.values():
                low, true, high = (
                    row[f"{name}_volume_{structure}"] for name in ("certain", "true", "possible")
                )
                row[column] = float(low <= true <= high)
            everyone[column] = sum(row[column] for row in rows.values()) / len(rows)
    return rows, everyone


def part_tables(
    records: Sequence[Mapping[str, Any]], cases: pd.DataFrame, structures: Sequence[str]
) -> dict[str, pd.DataFrame]:
    """Return the tables of raters and members, by name, as far as the records have such parts.

    Args:
        records: What was recorded of each case.
        cases: The values of all raters and of the mean of all networks, a row for each case.
        structures: Names of the structures.

    Returns:
        Means over the cases: a row for each rater or network, and each structure. The values of
        regions and whole cases are the same for all structures.
    """
    tables = {}
    for kind, (column, whole) in TABLES.items():
        parts = [record[kind] for record in records if kind in record]
        names = dict.fromkeys(name for part in parts for name in part)
        values = {
            name: pd.DataFrame([part[name] for part in parts if name in part]) for name in names
        }
        rows = [
            {column: name, "structure": structure, "scans": len(each)}
            | _row(each, structure, structures)
            for name, each in {**values, whole: cases}.items()
            for structure in structures
        ]
        if names:
            tables[kind] = pd.DataFrame(rows)
    return tables


def _row(values: pd.DataFrame, structure: str, structures: Sequence[str]) -> dict[str, float]:
    """Return the means over cases of a structure, of regions and of whole cases, by short names."""
    means = values.mean(numeric_only=True)
    row = {}
    for name, (measure, place) in columns(structures):
        if name not in means:
            continue
        if measure.scope == "structure":
            short = measure.name if place == structure else ""
        elif place.startswith("structure_"):
            short = measure.column("structure") if place == f"structure_{structure}" else ""
        else:
            short = name
        if short:
            row[short] = means[name]
    for short in (RATERS_DSC, IN_RANGE):
        if f"{short}_{structure}" in means:
            row[short] = means[f"{short}_{structure}"]
    return row
