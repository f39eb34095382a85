"""The figure of means with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from calib_components.figures.style import NAME, PALETTE, is_first, literal, panel_grid

BLUE = PALETTE[-1]


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
    figure, grid = panel_grid(len(panels), 3, 2.5, 0.7 + 0.21 * len(rows), extra=(1.4, 0))
    for (axes,), (title, table) in zip(grid, panels.items(), strict=True):
        for row, (mean, low, high) in enumerate(np.asarray(table, float)):
            axes.plot([low, high], [row, row], color=BLUE, linewidth=1.5)
            axes.plot(
                mean,
                row,
                "o",
                color=BLUE,
                markersize=5,
                markerfacecolor="white" if hollow[row] else BLUE,
            )
        axes.set_title(title, fontsize="medium")
        names = [literal(name, NAME) for name in rows] if is_first(axes) else [""] * len(rows)
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize="small")
        axes.grid(axis="x", color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
    return figure
