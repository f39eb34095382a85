"""`compare_losses` trains and evaluates losses; `report` makes a page of the results, or of any evaluations."""

from calib_components.tools.compare.run import compare_losses
from calib_components.tools.report.overview import report_datasets
from calib_components.tools.report.report import report, report_evaluations, report_folders

__all__ = ["compare_losses", "report", "report_datasets", "report_evaluations", "report_folders"]
