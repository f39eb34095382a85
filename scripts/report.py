"""Make one page, tables and figures of a comparison of losses, or of any evaluations.

    python scripts/report.py study/results/acdc/three_seeds --out report --reference ce_dice
    python scripts/report.py eval_of_one_network eval_of_another --out report
    python scripts/report.py my_results --out report --compact my_results_in_five_files

The first is the results folder of `scripts/compare_losses.py`, or its compact form. Evaluation
folders, which `evaluate.yaml` of a bundle and `scripts/evaluate_predictions.py` write, are compared
on their common cases; one alone is described. The page, `index.html`, begins with its answer and
what to do next, holds all its figures and needs no network; the same tables are in CSV files.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from calib_tools import cli, commands
from calib_tools.report import is_comparison
from study.compare.commands import report_comparison


def choose_command() -> Callable[..., None]:
    """Return the report of a comparison of losses, of the study, if its folder is an argument."""
    if any(is_comparison(Path(word)) for word in sys.argv[1:]):
        return report_comparison
    return commands.report_folders


if __name__ == "__main__":
    cli.run("report", choose_command())
