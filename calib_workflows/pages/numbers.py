"""Numbers of a page as text.

A record is a dictionary that names what was measured, its `measure`, and has its `mean` and, if
they are defined, the ends of its interval, `low` and `high`, and its `p_value`. Sections hold
records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from calib_components.metrics.measures import find_column

Record = Mapping[str, Any]

SIGNIFICANT = 0.05
ARROWS = {"higher": "↑", "lower": "↓", "": ""}
NONE = "n/a"  # in place of a number
MAX_DIGITS = 5
VOLUME_UNITS = ("ml", "voxels")
# Others have 3
DIGITS = {"mean": 2, "ml": 2, "voxels": 0, "points": 0, "missed": 0, "spurious": 0}
TITLES = {  # of what is no column of cases.csv
    "gap": "confidence minus accuracy",
    "optimism": "expected minus true DSC",
    "segmented_volume_error": "segmented minus true volume",
    "expected_volume_error": "expected minus true volume",
}
SIGNED = (*TITLES,)  # differences


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
        return TITLES.get(measure, measure.replace("_", " "))
    text = f"{column.measure.title} {column.place}".strip()
    return f"{text} {ARROWS[column.measure.better]}".strip() if arrow else text


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
    digits = _digits(value, measure)
    if not signed:
        return f"{value:.{digits}f}"
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


def interval(low: float, high: float, measure: str, signed: bool = False) -> list[str]:
    """Return an interval as a note; none if it is not defined."""
    if math.isnan(low):
        return []
    return [f"[{number(low, measure, signed)}, {number(high, measure, signed)}]"]


def p_text(p_value: float) -> list[str]:
    """Return a p-value as a note; none if no test was made."""
    if math.isnan(p_value):
        return []
    return ["p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"]


def is_significant(record: Record) -> bool:
    """Return whether a difference is significant: its p-value, corrected if it is one of several,
    is small, and 0 is not in its interval.
    """
    is_beside_0 = record.get("low", math.nan) > 0 or record.get("high", math.nan) < 0
    return is_beside_0 and _p_value(record) < SIGNIFICANT


def _p_value(record: Record) -> float:
    return record.get("p_value_holm", record.get("p_value", math.nan))


def to_cell(record: Record) -> Cell:
    """Return the cell of a record: its `text`, or its number, and as notes its interval, p-value
    and others. A `unit` has other digits than the measure.
    """
    if "text" in record:
        return Cell(record["text"], record.get("notes", ()), record.get("bold", False))
    measure = record["measure"]
    unit, signed = record.get("unit", measure), record.get("signed", measure in SIGNED)
    if_true = record.get("if_true", math.nan)
    ends = record.get("low", math.nan), record.get("high", math.nan)
    notes = [*interval(*ends, unit, signed), *p_text(_p_value(record)), *record.get("notes", ())]
    if not math.isnan(if_true):
        notes.append(f"{number(if_true, unit)} if true")
    return Cell(number(record["mean"], unit, signed), notes, is_significant(record))
