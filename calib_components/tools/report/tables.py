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

from calib_components.metrics.measures import columns, find_column, report_columns
from calib_components.tools.report.statistics import Estimate

Record = Mapping[Any, Any]

# What conclusions are drawn from: easy background does not decide these as it does the NLL of all
# voxels.
DECIDING = ("nll_predicted", "ece_predicted", "ece_all")
COMPARED = ("dsc", "hd95", "nll_all", *DECIDING, "ece", "cece")
SHOWN = tuple(report_columns())
SHOWN_REGIONS = ("", "all", "predicted")  # of measures that are not in SHOWN

SIGNIFICANT = 0.05
# Of DSC: a method that loses more is not called better, whether the loss is significant or not
LOSS = 0.05
ARROWS = {"higher": "↑", "lower": "↓", "": ""}
NONE = "n/a"  # in place of a number
MAX_DIGITS = 5
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
    return f"{text} {ARROWS[column.measure.better]}".strip() if arrow else text


def further_measures() -> list[str]:
    """Return the columns of the measures that have a direction and are not in `SHOWN`."""
    shown = {column.measure.name for name in SHOWN if (column := find_column(name, []))}
    return [
        name
        for name, column in columns([])
        if column.measure.better
        and column.measure.scope != "structure"
        and column.measure.name not in shown
        and column.place in SHOWN_REGIONS
    ]


def higher_is_better(measure: str) -> bool:
    """Return whether higher values of a measure are better."""
    column = find_column(measure, [])
    return column is not None and column.measure.better == "higher"


def number(value: float, measure: str, signed: bool = False) -> str:
    """Return a number with the digits of its measure or unit.

    A difference has its sign and one more digit.
    """
    value = float(value)
    if math.isnan(value):
        return NONE
    if measure == "percent":
        return f"{value:.1f} %"
    digits = _digits(value, measure)
    if signed and measure not in VOLUMES:
        digits += 1
    sign = "+" if signed else ""
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # + 0.0: no -0.000


def _digits(value: float, measure: str) -> int:
    column = find_column(measure, [])
    if column is None:
        return DIGITS.get(measure, 3)
    digits = column.measure.digits
    if column.measure.scope == "region" and 0 < abs(value) < 0.5 * 10**-digits:
        return min(MAX_DIGITS, -math.floor(math.log10(abs(value))))  # a small error is not 0
    return digits


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
    """Return the cell of a record: its number, and as notes its interval, p-value and others."""
    estimate, unit = estimate_of(record), record.get("unit", record["measure"])
    signed, p_value = record.get("signed", False), record.get("p_value_holm", np.nan)
    notes = [*interval(estimate, unit, signed), *p_text(p_value), *record.get("notes", ())]
    if not np.isnan(record.get("if_true", np.nan)):
        notes.append(f"{number(record['if_true'], unit)} if true")
    is_bold = bold or is_significant(estimate, p_value)
    return Cell(number(estimate.mean, unit, signed), notes, bool(is_bold))


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
    by_column: dict[str, list[Record]] = {}
    for record in records:
        column = record.get("column") or heading(record["measure"])
        by_column.setdefault(column, []).append(record)
    lines = list(dict.fromkeys(tuple(str(record[name]) for name in index) for record in records))
    table = pd.DataFrame(lines, columns=[*index])
    for column, column_records in by_column.items():
        best = _best(column_records) if marked else [False] * len(column_records)
        cells = {
            tuple(str(record[name]) for name in index): to_cell(record, is_best)
            for record, is_best in zip(column_records, best, strict=True)
        }
        table[column] = [cells.get(line, Cell("")) for line in lines]
    return table.set_index([*index])


def _best(records: Sequence[Record]) -> list[bool]:
    """Return which records of a column are the best of those that may be marked."""
    marked = [record for record in records if not record.get("unmarked")]
    best = iter(are_best([*map(estimate_of, marked)], records[0]["measure"]))
    return [not record.get("unmarked") and next(best) for record in records]
