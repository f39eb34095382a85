"""Numbers of a report as text, and tables of them. Which measures a report shows.

A record is a dictionary that names what was measured and has the fields of an `Estimate`. The CSV
files of a report hold the records, and `tabulate` makes the table on its page from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from calib_components.metrics.measures import find_column, report_columns
from calib_components.tools.report.statistics import Estimate

Record = Mapping[Any, Any]

# What conclusions are drawn from: easy background does not decide these as it does the NLL of all
# voxels.
DECIDING = ("nll_predicted", "ece_predicted", "ece_all")
RANKED = ("dsc", "hd95", "ece", "cece")  # what the paper reports and ranks by
TRUSTED = ("dsc", "hd95", "nll_all", *DECIDING)
COMPARED = (*TRUSTED, "ece", "cece")
SHOWN = tuple(report_columns())

SIGNIFICANT = 0.05
# Of DSC: a method that loses more is not called better, whether the loss is significant or not
LOSS = 0.05
NONE = "n/a"  # in place of a number
MOST_DIGITS = 5
VOLUMES = ("ml", "voxels")
# Others have 3
DIGITS = {"mean": 2, "ml": 2, "voxels": 0, "missed": 0, "spurious": 0}
TITLES = {  # of what is no column of cases.csv
    "gap": "confidence minus accuracy",
    "optimism": "expected minus true DSC",
    "segmented_volume_error": "segmented minus true volume",
    "expected_volume_error": "expected minus true volume",
    "in_range": "volumes in range",
}


class Cell(NamedTuple):
    """A cell of a table: its text, smaller notes below it, and whether it is bold."""

    text: str
    notes: Sequence[str] = ()
    bold: bool = False


def heading(measure: str, structures: Sequence[str] = (), arrow: bool = True) -> str:
    """Return the heading of a column: title, region or structure, and an arrow that points to
    better values.
    """
    column = find_column(measure, structures)
    if column is None:
        return TITLES.get(measure, measure.replace("_", " "))
    text = f"{column.measure.title} {column.place}".strip()
    return text + {"higher": " ↑", "lower": " ↓"}.get(column.measure.better, "") * arrow


def higher_is_better(measure: str) -> bool:
    """Return whether higher values of a measure are better."""
    column = find_column(measure, [])
    return column is not None and column.measure.better == "higher"


def number(value: float, measure: str, signed: bool = False) -> str:
    """Return a number with the digits of its measure or unit; a difference with its sign and one
    more digit.
    """
    value, column = float(value), find_column(measure, [])
    if math.isnan(value):
        return NONE
    if measure == "percent":
        return f"{value:.1f} %"
    digits = DIGITS.get(measure, 3) if column is None else column.measure.digits
    digits += signed and measure not in VOLUMES
    if (
        column is not None
        and column.measure.scope == "region"
        and 0 < abs(value) < 0.5 * 10**-digits
    ):
        digits = min(MOST_DIGITS, -math.floor(math.log10(abs(value))))  # a small error is not 0
    return f"{round(value, digits) + 0.0:{'+' * signed}.{digits}f}"  # + 0.0: no -0.000


def interval(estimate: Estimate, measure: str, signed: bool = False) -> list[str]:
    """Return the interval of an estimate as a note; none if it is not defined."""
    if not estimate.has_interval:
        return []
    return [f"[{number(estimate.low, measure, signed)}, {number(estimate.high, measure, signed)}]"]


def with_interval(estimate: Estimate, measure: str, signed: bool = False) -> str:
    """Return a number and its interval in one line."""
    return " ".join([number(estimate.mean, measure, signed), *interval(estimate, measure, signed)])


def p_text(p_value: float) -> list[str]:
    """Return a p-value as a note; none if no test was made."""
    if np.isnan(p_value):
        return []
    return ["p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"]


def is_significant(difference: Estimate, p_value: float) -> bool:
    """Return whether a difference is significant: its corrected p-value is small, and 0 is not in
    its interval.
    """
    return p_value < SIGNIFICANT and (difference.low > 0 or difference.high < 0)


def listed(names: Sequence[str]) -> str:
    """Return names as text, such as "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def estimate_of(record: Record) -> Estimate:
    """Return the estimate in a record."""
    return Estimate(**{name: record[name] for name in Estimate._fields if name in record})


def to_cell(record: Record, bold: bool = False) -> Cell:
    """Return the cell of a record: its number, and as notes its interval, p-value and values to
    compare with.
    """
    estimate, unit, signed = (
        estimate_of(record),
        record.get("unit", record["measure"]),
        record.get("signed", False),
    )
    p_value, published, if_true = (
        record.get(name, np.nan) for name in ("p_value_holm", "published", "if_true")
    )
    notes = [*interval(estimate, unit, signed), *p_text(p_value)]
    notes += [] if np.isnan(published) else [f"paper {number(published, unit)}"]
    notes += [] if np.isnan(if_true) else [f"{number(if_true, unit)} if true"]
    return Cell(
        number(estimate.mean, unit, signed), notes, bool(bold or is_significant(estimate, p_value))
    )


def are_best(estimates: Sequence[Estimate], measure: str) -> list[bool]:
    """Return which of the means, as they are printed, are best; none if some have no interval, or
    all are the same.
    """
    printed = [number(estimate.mean, measure) for estimate in estimates]
    values = {float(text) for text in printed if text != NONE}
    if len(values) < 2 or not all(e.has_interval for e in estimates if not np.isnan(e.mean)):
        return [False] * len(estimates)
    best = max(values) if higher_is_better(measure) else min(values)
    return [text != NONE and float(text) == best for text in printed]


def tabulate(records: Sequence[Record], index: Sequence[str], marked: bool = False) -> pd.DataFrame:
    """Return the cells of records, with lines and columns in the order of their first records.

    Records with the same values of `index` make a line. Their column is their "column", or the
    heading of their measure. If `marked`, the best of each column is bold, among the lines that are
    not "unmarked".
    """
    table = pd.DataFrame({name: [str(record[name]) for record in records] for name in index})
    table["column"] = [record.get("column") or heading(record["measure"]) for record in records]
    table["best"] = False
    for _, column in table[[marked and not record.get("unmarked") for record in records]].groupby(
        "column"
    ):
        found = [records[place] for place in column.index]
        table.loc[column.index, "best"] = are_best([*map(estimate_of, found)], found[0]["measure"])
    table["cell"] = [
        to_cell(record, best) for record, best in zip(records, table["best"], strict=True)
    ]
    lines, columns = table.set_index([*index]).index.unique(), table["column"].unique()
    wide = table.pivot(index=[*index], columns="column", values="cell").reindex(
        index=lines, columns=columns
    )
    return wide.map(lambda cell: cell if isinstance(cell, Cell) else Cell(""))
