"""Draw docs/results.png: the NLL, and the ECE where a structure is predicted, of each loss on each test set."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for a clone that is not installed

from calib_components.errors import writing
from calib_components.tools.cli import run
from calib_components.tools.report.figures import mean_intervals

ROOT = Path(__file__).resolve().parents[1]
REPORTS = [ROOT / f"results/acdc/{name}/report" for name in ("three_seeds", "further")]
MEASURES = {"nll_all": "NLL, all voxels", "ece_predicted": "ECE, predicted foreground"}
PLACES = {"": "ACDC", "_on_bssfp": "bSSFP", "_on_lge": "LGE"}


def draw_results(out: Path = ROOT / "docs" / "results.png") -> None:
    """Draw the picture to a PNG file."""
    panels = {}
    for measure, title in MEASURES.items():
        for place, origin in PLACES.items():
            means = pd.concat([pd.read_csv(report / f"means{place}.csv") for report in REPORTS])
            rows = means[means["measure"] == measure].drop_duplicates("label")  # what several reports have
            panels[f"{title}: {origin}"] = rows[["mean", "low", "high"]]
    figure = mean_intervals(panels, [*rows["label"]], [*(rows["temperature"] == "with")])
    with writing(out) as unfinished:
        figure.savefig(unfinished, format="png")


if __name__ == "__main__":
    run("draw_results", draw_results)
