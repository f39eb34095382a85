"""`compare_losses` trains and evaluates losses; `report` makes a page of the results, or of any evaluations."""

from calib_components.tools.comparison.overview import report_datasets
from calib_components.tools.comparison.report import report, report_evaluations, report_folders
from calib_components.tools.comparison.run import compare_losses

__all__ = ["compare_losses", "report", "report_datasets", "report_evaluations", "report_folders"]
