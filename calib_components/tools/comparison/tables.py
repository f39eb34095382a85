"""Numbers of the report as text: headings, digits, intervals, and marks of the best."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calib_components.tools.comparison.published import METRICS, Metric
from calib_components.tools.comparison.statistics import Difference, Estimate

__all__ = ["DIFFERENCE", "best_marks", "heading", "interval", "number"]

MEAN, DIFFERENCE = "", "+"  # styles of a number, see number
NONE = "n/a"  # in place of a number


def heading(measure: str, region: str = "") -> str:
    """Return the heading of a column, with an arrow that points to better values.

    Args:
        measure: Name of the measure, such as "dsc_RV" or "ece_predicted".
        region: Region to name where the measure has none.
    """
    metric = _metric(measure)
    part = measure.partition("_")[2] or region
    return f"{metric.label} {part}".strip() + (" ↑" if metric.higher_is_better else " ↓")


def _metric(measure: str) -> Metric:
    return METRICS.get(measure.partition("_")[0], Metric(measure, False))


def number(value: float, measure: str, style: str = MEAN) -> str:
    """Return a number with the digits of its measure; a difference with its sign and one more digit."""
    if np.isnan(value):
        return NONE
    if measure == "sum_rank":
        return f"{value:g}"
    digits = (2 if measure.startswith(("hd95", "mean_case_rank")) else 3) + (style == DIFFERENCE)
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
    places = sorted({float(text) for text in printed if text != NONE}, reverse=_metric(measure).higher_is_better)
    marks = dict(zip(places, ("bold", "underlined"), strict=False)) if len(places) > 1 else {}
    return ["" if text == NONE else marks.get(float(text), "") for text in printed]
