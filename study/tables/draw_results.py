"""Draw study/pages/results.png: the NLL over all voxels and where a structure is predicted, of each
loss on each test set.
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for a clone that is not installed

from calib_components.errors import writing
from calib_tools.cli import run
from calib_workflows.pages.slices import COLORS
from study.tables.fill_tables import ROOT, TITLES, label_of, mean

LOSSES = ("ce_dice", "cross_entropy", "entropy_penalty", "svls", "nacl_softmax", "mbls", "nacl")
ROWS = [name + end for name in LOSSES for end in ("", "+T")]
MEASURES = {"nll_all": "NLL, all voxels", "nll_predicted": "NLL, predicted foreground"}
PLACES = ("acdc", "bssfp", "lge")
BLUE = f"#{COLORS[3]}"


def draw_panel(axes: Axes, measure: str, place: str) -> None:
    """Draw the mean of each row with its interval; the mark is hollow with a temperature."""
    for row, name in enumerate(ROWS):
        value, low, high = mean(name, place, measure)[:3]
        axes.plot([low, high], [row, row], color=BLUE, linewidth=1.5)
        fill = "white" if name.endswith("+T") else BLUE
        axes.plot(value, row, "o", color=BLUE, markersize=5, markerfacecolor=fill)
    axes.set_title(f"{MEASURES[measure]}: {TITLES[place]}", fontsize="medium")
    axes.set_yticks(range(len(ROWS)), map(label_of, ROWS))
    axes.tick_params(axis="y", length=0, labelleft=place == PLACES[0])
    axes.tick_params(axis="x", labelsize="small")
    axes.invert_yaxis()
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def draw_results(out: Path = ROOT / "study" / "pages" / "results.png") -> None:
    """Draw the picture to a PNG file."""
    figure = Figure(figsize=(8.9, 7.3), dpi=150, layout="constrained")
    for line, measure in zip(figure.subplots(2, 3), MEASURES, strict=True):
        for axes, place in zip(line, PLACES, strict=True):
            draw_panel(axes, measure, place)
    with writing(out) as unfinished:
        figure.savefig(unfinished, format="png")


if __name__ == "__main__":
    run("draw_results", draw_results)
