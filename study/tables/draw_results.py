"""Draw study/pages/results.png: the NLL over all voxels and where a structure is predicted, of each loss
on each test set.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for a clone that is not installed

from calib_components.errors import writing
from calib_components.tools.cli import run
from calib_components.tools.report.figures import mean_intervals
from study.tables.fill_tables import ROOT, TITLES, label_of, mean

LOSSES = ("ce_dice", "cross_entropy", "entropy_penalty", "svls", "nacl_softmax", "mbls", "nacl")
MEASURES = {"nll_all": "NLL, all voxels", "nll_predicted": "NLL, predicted foreground"}


def draw_results(out: Path = ROOT / "study" / "pages" / "results.png") -> None:
    """Draw the picture to a PNG file."""
    rows = [name + end for name in LOSSES for end in ("", "+T")]
    panels = {
        f"{title}: {TITLES[place]}": [mean(row, place, measure)[:3] for row in rows]
        for measure, title in MEASURES.items()
        for place in ("acdc", "bssfp", "lge")
    }
    figure = mean_intervals(panels, [*map(label_of, rows)], [name.endswith("+T") for name in rows])
    with writing(out) as unfinished:
        figure.savefig(unfinished, format="png")


if __name__ == "__main__":
    run("draw_results", draw_results)
