"""The comparison of losses: `compare_losses` trains and evaluates, `report` makes tables and figures of the results."""

from calib_components.tools.comparison.report import report
from calib_components.tools.comparison.run import compare_losses

__all__ = ["compare_losses", "report"]
