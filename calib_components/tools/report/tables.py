"""Numbers of the report as text: headings, digits, intervals, and marks of the best."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from calib_components.tools.report.published import METRICS, Measure
from calib_components.tools.report.statistics import Difference, Estimate

__all__ = [
    "DIFFERENCE",
    "SIGNIFICANT",
    "best_marks",
    "channels_text",
    "heading",
    "higher_is_better",
    "interval",
    "is_told",
    "number",
    "p_text",
    "plain_heading",
]

MEAN, DIFFERENCE = "", "+"  # styles of a number, see number
NONE = "n/a"  # in place of a number
SIGNIFICANT = 0.05
SCORES = ("ece", "cece", "smooth_ece", "nll", "brier")  # of which a small one is not 0
MOST_DIGITS = 5
MEASURES = {**METRICS, "smooth_ece": Measure("smooth ECE", False)}
OF_STRUCTURES = ("dsc", "hd95")  # means over structures, whatever the region


def heading(measure: str, region: str = "") -> str:
    """Return the heading of a column, with an arrow that points to better values.

    Args:
        measure: Name of the measure, such as "dsc_RV" or "ece_predicted".
        region: Region to name where the measure has none, unless it is one of structures.
    """
    return plain_heading(measure, region) + (" ↑" if higher_is_better(measure) else " ↓")


def plain_heading(measure: str, region: str = "") -> str:
    """Return the heading of a column without the arrow. Arguments as in `heading`."""
    metric, part = _split(measure)
    return f"{metric.label} {part or (region if measure not in OF_STRUCTURES else '')}".strip()


def higher_is_better(measure: str) -> bool:
    """Return whether higher values of a measure are better."""
    return _split(measure)[0].higher_is_better


def _split(measure: str) -> tuple[Measure, str]:
    """Return the metric of a measure, and the region or structure."""
    for name in sorted(MEASURES, key=len, reverse=True):
        if measure == name or measure.startswith(f"{name}_"):
            return MEASURES[name], measure[len(name) + 1 :]
    return Measure(measure, False), ""


def number(value: float, measure: str, style: str = MEAN) -> str:
    """Return a number with the digits of its measure; a difference with its sign and one more digit."""
    if np.isnan(value):
        return NONE
    if measure == "sum_rank":
        return f"{value:g}"
    digits = (2 if measure.startswith(("hd95", "mean_case_rank")) else 3) + (style == DIFFERENCE)
    if measure.startswith(SCORES) and 0 < abs(value) < 0.5 * 10**-digits:
        digits = min(MOST_DIGITS, -math.floor(math.log10(abs(value))))  # all voxels may make them tiny
    return f"{round(value, digits) + 0.0:{style}.{digits}f}"  # + 0.0: no -0.000


def interval(estimate: Estimate | Difference, measure: str, style: str = MEAN) -> list[str]:
    """Return the interval of an estimate as a note; none if it is not defined."""
    if np.isnan(estimate.low):
        return []
    return [f"[{number(estimate.low, measure, style)}, {number(estimate.high, measure, style)}]"]


def best_marks(estimates: Sequence[Estimate], measure: str) -> list[str]:
    """Return which of the means, as they are printed, are the best and the second best; none without intervals."""
    defined = [estimate for estimate in estimates if not np.isnan(estimate.mean)]
    if any(np.isnan(estimate.low) for estimate in defined):
        return [""] * len(estimates)
    printed = [number(estimate.mean, measure) for estimate in estimates]
    places = sorted({float(text) for text in printed if text != NONE}, reverse=higher_is_better(measure))
    marks = dict(zip(places, ("bold", "underlined"), strict=False)) if len(places) > 1 else {}
    return ["" if text == NONE else marks.get(float(text), "") for text in printed]


def is_told(difference: Difference, p_value: float) -> bool:
    """Return whether a difference can be told from none: by its test, over patients, and by its interval, over all."""
    return p_value < SIGNIFICANT and (difference.low > 0 or difference.high < 0)


def channels_text(channels: int, sigmoid: bool) -> str:
    """Return what probabilities are of: one softmax over all channels, or a sigmoid for each."""
    return f"{channels} sigmoid(s)" if sigmoid else f"a softmax over {channels} classes"


def p_text(p_value: float) -> list[str]:
    """Return a p-value as a note; none if no test was made."""
    if np.isnan(p_value):
        return []
    return ["p < 0.001" if p_value < 0.001 else f"p = {number(p_value, 'p_value')}"]
