"""Draw study/pages/results.png: the NLL over all voxels and where a structure is predicted, of each
loss on each test set.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for a clone that is not installed

from calib_components.errors import writing
from calib_components.figures.style import NAME, class_color, literal
from calib_components.tools.cli import run
from study.tables.fill_tables import ROOT, TITLES, label_of, mean

LOSSES = ("ce_dice", "cross_entropy", "entropy_penalty", "svls", "nacl_softmax", "mbls", "nacl")
MEASURES = {"nll_all": "NLL, all voxels", "nll_predicted": "NLL, predicted foreground"}


BLUE = class_color(4)
ABREAST = 3  # panels


def mean_intervals(
    panels: Mapping[str, ArrayLike], rows: Sequence[str], hollow: Sequence[bool]
) -> Figure:
    """Draw means with their intervals: three panels abreast, each with its own axis and the same
    rows.

    Args:
        panels: Means and the ends of their intervals, `(rows, 3)`, by the title of their panel; NaN
            draws nothing.
        rows: Names of the rows, from above.
        hollow: Whether the mark of a row is hollow, such as those of networks with a temperature.
    """
    lines = math.ceil(len(panels) / ABREAST)
    size = (2.5 * ABREAST + 1.4, (0.7 + 0.21 * len(rows)) * lines)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    for i, (title, table) in enumerate(panels.items()):
        axes = figure.add_subplot(lines, ABREAST, i + 1)
        for row, (value, low, high) in enumerate(np.asarray(table, float)):
            axes.plot([low, high], [row, row], color=BLUE, linewidth=1.5)
            fill = "white" if hollow[row] else BLUE
            axes.plot(value, row, "o", color=BLUE, markersize=5, markerfacecolor=fill)
        axes.set_title(title, fontsize="medium")
        names = [literal(name, NAME) if i % ABREAST == 0 else "" for name in rows]
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize="small")
        axes.grid(axis="x", color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


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
