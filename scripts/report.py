"""Make tables and figures of a comparison of losses, from the results folder of `scripts/compare_losses.py`.

    python scripts/report.py results/acdc/table1 --out results/acdc/table1/report

writes one page, `index.html`, that holds all its figures and needs no network; the same tables as `report.md` and CSV
files; and the figures.
"""

from __future__ import annotations

from calib_components.tools import command_line
from calib_components.tools.comparison import report

if __name__ == "__main__":
    command_line.run("report", report)
