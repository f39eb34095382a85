"""Figures, drawn from saved results without running a network. Requires matplotlib, unlike losses
and metrics.

Every function returns a `matplotlib.figure.Figure` without a window: save it with
`figure.savefig(path)`.
"""

from calib_workflows.figures.reliability import reliability_diagram

__all__ = ["reliability_diagram"]
