"""Numbers of a page as text.

A record is a row of the table of a section. It names what was measured, its `measure`, and has its
`mean` and, if they are defined, the ends of its interval, `low` and `high`, and its `p_value`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from calib_components.metrics.case import find_column

Record = Mapping[str, Any]

SIGNIFICANT = 0.05
ARROWS = {"higher": "↑", "lower": "↓", "": ""}
NONE = "n/a"  # in place of a number
MAX_DIGITS = 5
VOLUME_UNITS = ("ml", "voxels")
# Others have 3
DIGITS = {"mean": 2, "ml": 2, "voxels": 0, "%": 1, "points": 0, "missed": 0, "spurious": 0}
# Measures that are no columns of cases.csv, by their titles; their numbers have a sign
DIFFERENCES = {
    "gap": "confidence minus accuracy",
    "optimism": "expected minus true DSC",
    "segmented_volume_error": "segmented minus true volume",
    "expected_volume_error": "expected minus true volume",
}


class Cell(NamedTuple):
    """A cell of a table: its text, smaller notes below it, whether it is bold, and the colour of a
    mark before it.
    """

    text: str
    notes: Sequence[str] = ()
    bold: bool = False
    color: str = ""

    def __str__(self) -> str:
        return " ".join([self.text, *self.notes])


def heading(measure: str, structures: Sequence[str] = (), arrow: bool = True) -> str:
    """Return the heading of a column: title, region or structure, and an arrow that points to
    better values.
    """
    column = find_column(measure, structures)
    if column is None:
        return DIFFERENCES.get(measure, measure.replace("_", " "))
    text = f"{column.measure.title} {column.place}".strip()
    return f"{text} {ARROWS[column.measure.better]}".strip() if arrow else text


def number(value: float, measure: str, signed: bool = False) -> str:
    """Return a number with the digits of its measure or unit.

    A difference has its sign and one more digit.
    """
    value = float(value)
    if math.isnan(value):
        return NONE
    digits = _digits(value, measure)
    if not signed:
        return f"{value:.{digits}f}" + ("\u00a0%" if measure == "%" else "")
    digits += measure not in VOLUME_UNITS
    return f"{round(value, digits) + 0.0:+.{digits}f}"  # + 0.0: no -0.000


def _digits(value: float, measure: str) -> int:
    column = find_column(measure, [])
    if column is None:
        return DIGITS.get(measure, 3)
    digits = column.measure.digits
    if column.measure.regions and 0 < abs(value) < 0.5 * 10**-digits:
        return min(MAX_DIGITS, -math.floor(math.log10(abs(value))))  # a small error is not 0
    return digits


def is_significant(record: Record) -> bool:
    """Return whether a difference is significant: its p-value, corrected if it is one of several,
    is small, and 0 is not in its interval.
    """
    is_beside_0 = record.get("low", math.nan) > 0 or record.get("high", math.nan) < 0
    return is_beside_0 and _p_value(record) < SIGNIFICANT


def _p_value(record: Record) -> float:
    return record.get("p_value_holm", record.get("p_value", math.nan))


def to_cell(record: Record) -> Cell:
    """Return the cell of a record: its `text`, or its number, and as notes its interval, p-value,
    `note` and value `if_true`, as far as they are defined. A `unit` has other digits than the
    measure.
    """
    given = {name: value for name, value in record.items() if pd.notna(value)}
    further = [given["note"]] if "note" in given else []
    if "text" in given:
        return Cell(given["text"], further, given.get("bold", False))
    measure, notes = given["measure"], []
    unit, signed = given.get("unit", measure), given.get("signed", measure in DIFFERENCES)
    if "low" in given:
        low, high = (number(given[end], unit, signed) for end in ("low", "high"))
        notes.append(f"[{low}, {high}]")
    p_value = _p_value(given)
    if not math.isnan(p_value):
        notes.append("p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}")
    notes += further
    if "if_true" in given:
        notes.append(f"{number(given['if_true'], unit)} if true")
    return Cell(number(given.get("mean", math.nan), unit, signed), notes, is_significant(given))
