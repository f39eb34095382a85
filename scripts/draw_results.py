"""Draw docs/results.png: the NLL, and the ECE where a structure is predicted, of each loss on each test set."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for a clone that is not installed

from calib_components.errors import writing
from calib_components.figures import mean_intervals
from calib_components.tools.cli import run
from calib_components.tools.compare.settings import FURTHER, PRESETS
from calib_components.tools.report.page import to_png

ROOT = Path(__file__).resolve().parents[1]
REPORTS = [ROOT / f"results/acdc/{name}/report" for name in ("three_seeds", "further")]
MEASURES = {"nll_all": "NLL, all voxels", "ece_predicted": "ECE, predicted foreground"}
PLACES = {"": "ACDC", "_on_bssfp": "bSSFP", "_on_lge": "LGE"}
SUFFIXES = {"without": "", "with": " + T"}


def draw_results(out: Path = ROOT / "docs" / "results.png") -> None:
    """Draw the picture.

    Args:
        out: The PNG file to write.
    """
    titles = {setting.name: setting.label for preset in (*PRESETS.values(), FURTHER) for setting in preset}
    panels, hollow = {}, {}
    for measure, title in MEASURES.items():
        for place, origin in PLACES.items():
            rows: list[dict[str, str]] = []
            for report in REPORTS:  # what several reports have is drawn once
                drawn = {row["method"] for row in rows}
                with open(report / f"means{place}.csv", newline="") as file:
                    means = [row for row in csv.DictReader(file) if row["measure"] == measure]
                rows += [row for row in means if row["method"] not in drawn]
            panels[f"{title}: {origin}"] = [[float(row[name]) for name in ("mean", "low", "high")] for row in rows]
            hollow = {
                titles[row["method"]] + SUFFIXES[row["temperature"]]: row["temperature"] == "with" for row in rows
            }
    figure = mean_intervals(panels, list(hollow), list(hollow.values()))
    with writing(out) as unfinished:
        unfinished.write_bytes(to_png(figure))


if __name__ == "__main__":
    run("draw_results", draw_results)
