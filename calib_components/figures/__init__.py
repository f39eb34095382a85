"""Figures, drawn from saved results without running a network. Requires matplotlib, unlike losses and metrics.

Every function returns a `matplotlib.figure.Figure` without a window: save it with `figure.savefig(path)`.
"""

from calib_components.figures.clinical import (
    expected_dsc_scatter,
    risk_coverage_curves,
    threshold_curves,
    uncertainty_overlay,
    volume_agreement,
)
from calib_components.figures.comparison import logit_bars, mean_intervals, rank_heat_map, rank_lines
from calib_components.figures.reliability import reliability_diagram

__all__ = [
    "expected_dsc_scatter",
    "logit_bars",
    "mean_intervals",
    "rank_heat_map",
    "rank_lines",
    "reliability_diagram",
    "risk_coverage_curves",
    "threshold_curves",
    "uncertainty_overlay",
    "volume_agreement",
]
