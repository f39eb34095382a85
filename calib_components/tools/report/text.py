"""Numbers of a report as text: headings, digits, intervals and marks of the best. Which measures a report shows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from calib_components.metrics.measures import find_column
from calib_components.tools.report.statistics import Estimate

# What conclusions are drawn from: the score of all probabilities, and calibration where the prediction chooses voxels.
CONCLUDED = ("nll_all", "ece_all", "ece_predicted")
RANKED = ("dsc", "hd95", "ece", "cece")  # what the paper reports and ranks by
TRUSTED = ("dsc", "hd95", *CONCLUDED)
SHOWN = (
    "dsc",
    "hd95",
    "ece_all",
    "ece_predicted",
    "ece_plausible",
    "nll_all",
    "nll_predicted",
    "brier_all",
    "ece",
    "cece",
)
COMPARED = ("dsc", "hd95", *CONCLUDED, "ece", "cece")

SIGNIFICANT = 0.05
NONE = "n/a"  # in place of a number
MOST_DIGITS = 5
VOLUMES = ("ml", "voxels")
DIGITS = {"hd95": 2, "mean": 2, "ml": 2, "voxels": 0, "aurc": 5}  # others have 3


def heading(measure: str, structures: Sequence[str] = (), arrow: bool = True) -> str:
    """Return the heading of a column: title, region or structure, and an arrow that points to better values."""
    column = find_column(measure, structures)
    if column is None:
        return measure
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
    defined = [e for e in estimates if not np.isnan(e.mean)]
    places = sorted({float(text) for text in printed if text != NONE}, reverse=higher_is_better(measure))
    if len(places) < 2 or not all(estimate.has_interval for estimate in defined):
        return [""] * len(estimates)
    marks = dict(zip(places, ("bold", "underlined"), strict=False))
    return ["" if text == NONE else marks.get(float(text), "") for text in printed]


def is_significant(difference: Estimate, p_value: float) -> bool:
    """Return whether a difference is significant: its corrected p-value is small, and 0 is not in its interval."""
    return p_value < SIGNIFICANT and (difference.low > 0 or difference.high < 0)


def listed(names: Sequence[str]) -> str:
    """Return names as text, such as "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
