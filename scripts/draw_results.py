"""Draw docs/results.png: the NLL, and the ECE where a structure is predicted, of each loss on each test set."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for a clone that is not installed

from calib_components.errors import writing
from calib_components.figures import mean_intervals
from calib_components.tools.command_line import run
from calib_components.tools.comparison.page import to_png
from calib_components.tools.comparison.settings import FURTHER, TABLE1

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "results/acdc/three_seeds/report"
MEASURES = {"nll_all": "NLL, all voxels", "ece_predicted": "ECE, predicted foreground"}
PLACES = {"": "ACDC", "_on_bssfp": "bSSFP", "_on_lge": "LGE"}
SUFFIXES = {"without": "", "with": " + T"}


def draw_results(report: Path = REPORT, out: Path = ROOT / "docs" / "results.png") -> None:
    """Draw the picture.

    Args:
        report: Folder of the report whose means are drawn.
        out: The PNG file to write.
    """
    titles = {setting.name: setting.label for setting in (*TABLE1, *FURTHER)}
    panels, hollow = {}, {}
    for measure, title in MEASURES.items():
        for place, origin in PLACES.items():
            with open(report / f"means{place}.csv", newline="") as file:
                rows = [row for row in csv.DictReader(file) if row["measure"] == measure]
            panels[f"{title}: {origin}"] = [[float(row[name]) for name in ("mean", "low", "high")] for row in rows]
            hollow = {
                titles[row["method"]] + SUFFIXES[row["temperature"]]: row["temperature"] == "with" for row in rows
            }
    figure = mean_intervals(panels, list(hollow), list(hollow.values()))
    with writing(out) as unfinished:
        unfinished.write_bytes(to_png(figure))


if __name__ == "__main__":
    run("draw_results", draw_results)
