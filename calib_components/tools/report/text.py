"""Numbers of a report as text, and tables from records. Which measures a report shows.

A record is a dictionary that names what was measured and has the fields of an `Estimate`. The CSV files of a report
hold the records, and `tabulate` makes the table on its page from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from calib_components.metrics.measures import find_column
from calib_components.tools.report.page import Cell
from calib_components.tools.report.statistics import Estimate

Record = Mapping[Any, Any]

# What conclusions are drawn from: the score of all probabilities, and calibration where the prediction chooses voxels.
CONCLUDED = ("nll_all", "ece_all", "ece_predicted")
RANKED = ("dsc", "hd95", "ece", "cece")  # what the paper reports and ranks by
TRUSTED = ("dsc", "hd95", *CONCLUDED)
OF_REGIONS = ("ece_all", "ece_predicted", "ece_plausible", "nll_all", "nll_predicted", "brier_all")
SHOWN = ("dsc", "hd95", *OF_REGIONS, "ece", "cece")
COMPARED = ("dsc", "hd95", *CONCLUDED, "ece", "cece")

SIGNIFICANT = 0.05
NONE = "n/a"  # in place of a number
MOST_DIGITS = 5
VOLUMES = ("ml", "voxels")
DIGITS = {"hd95": 2, "mean": 2, "ml": 2, "voxels": 0, "aurc": 5}  # others have 3
TITLES = {  # of what is no column of cases.csv
    "sum_rank": "sum-rank ↓",
    "mean_case_rank": "mean-case-rank ↓",
    "error_share": "errors among the 5 % most uncertain voxels ↑",
    "sensitivity": "sensitivity ↑",
    "specificity": "specificity ↑",
    "ppv": "PPV ↑",
}


def heading(measure: str, structures: Sequence[str] = (), arrow: bool = True) -> str:
    """Return the heading of a column: title, region or structure, and an arrow that points to better values."""
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
    """Return a number with the digits of its measure or unit; a difference with its sign and one more digit."""
    value, column = float(value), find_column(measure, [])
    if math.isnan(value):
        return NONE
    if measure == "sum_rank":
        return f"{value:g}"
    if measure == "percent":
        return f"{value:.1f} %"
    name = measure if column is None else column.measure.name
    digits = DIGITS.get(name.partition("_")[0], 3) + (signed and measure not in VOLUMES)
    if column is not None and column.measure.scope == "region" and 0 < abs(value) < 0.5 * 10**-digits:
        digits = min(MOST_DIGITS, -math.floor(math.log10(abs(value))))  # a small error is not 0
    return f"{round(value, digits) + 0.0:{'+' * signed}.{digits}f}"  # + 0.0: no -0.000


def interval(estimate: Estimate, measure: str, signed: bool = False) -> list[str]:
    """Return the interval of an estimate as a note; none if it is not defined."""
    if not estimate.has_interval:
        return []
    return [f"[{number(estimate.low, measure, signed)}, {number(estimate.high, measure, signed)}]"]


def p_text(p_value: float) -> list[str]:
    """Return a p-value as a note; none if no test was made."""
    if np.isnan(p_value):
        return []
    return ["p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"]


def best_marks(estimates: Sequence[Estimate], measure: str) -> list[str]:
    """Return which of the means, as they are printed, are best and second best; none without intervals."""
    printed = [number(estimate.mean, measure) for estimate in estimates]
    places = sorted({float(text) for text in printed if text != NONE}, reverse=higher_is_better(measure))
    if len(places) < 2 or not all(e.has_interval for e in estimates if not np.isnan(e.mean)):
        return [""] * len(estimates)
    marks = dict(zip(places, ("bold", "underlined"), strict=False))
    return ["" if text == NONE else marks.get(float(text), "") for text in printed]


def is_significant(difference: Estimate, p_value: float) -> bool:
    """Return whether a difference is significant: its corrected p-value is small, and 0 is not in its interval."""
    return p_value < SIGNIFICANT and (difference.low > 0 or difference.high < 0)


def listed(names: Sequence[str]) -> str:
    """Return names as text, such as "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def with_interval(estimate: Estimate, measure: str, signed: bool = False) -> str:
    """Return a number and its interval in one line."""
    return " ".join([number(estimate.mean, measure, signed), *interval(estimate, measure, signed)])


def estimate_of(record: Record) -> Estimate:
    """Return the estimate in a record."""
    return Estimate(**{name: record[name] for name in Estimate._fields if name in record})


def to_cell(record: Record, signed: bool = False, mark: str = "") -> Cell:
    """Return the cell of a record: its number, and as notes its interval, p-value and values to compare with."""
    estimate, unit = estimate_of(record), record.get("unit", record["measure"])
    p_value, published, if_true = (record.get(name, np.nan) for name in ("p_value_holm", "published", "if_true"))
    notes = [*interval(estimate, unit, signed), *p_text(p_value)]
    notes += [] if np.isnan(published) else [f"paper {number(published, unit)}"]
    notes += [] if np.isnan(if_true) else [f"{number(if_true, unit)} if true"]
    return Cell(number(estimate.mean, unit, signed), notes, "bold" if is_significant(estimate, p_value) else mark)


def tabulate(
    records: Sequence[Record],
    row: Callable[[Record], tuple[Cell, ...]],
    columns: Sequence[str] = (),
    signed: bool = False,
    marked: bool = False,
) -> tuple[list[str], list[list[Cell]]]:
    """Return headings and lines of the table of records, both in the order of their first records, or of `columns`.

    `row` gives the first cells of the line of a record, with notes that are tuples. Its heading is its "column" or that
    of its measure. Differences are `signed`. The best and the second best of each column are marked if it is `marked`.
    """
    by_column: dict[str, list[Record]] = {name: [] for name in columns}
    for record in records:
        by_column.setdefault(record.get("column") or heading(record["measure"]), []).append(record)
    lines: dict[tuple[Cell, ...], dict[str, Cell]] = {row(record): {} for record in records}
    for name, of_column in by_column.items():
        estimates = [estimate_of(record) for record in of_column]
        marks = best_marks(estimates, of_column[0]["measure"]) if marked else [""] * len(estimates)
        for record, mark in zip(of_column, marks, strict=True):
            lines[row(record)][name] = to_cell(record, signed, mark)
    table = [[*first, *(found.get(name, Cell("")) for name in by_column)] for first, found in lines.items()]
    return list(by_column), table
