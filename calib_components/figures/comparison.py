"""Figures of a comparison of methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from calib_components.figures.style import NAME, PALETTE, TICK, class_color, is_first, literal, panel_grid

BLUE = PALETTE[7]


def mean_intervals(panels: Mapping[str, ArrayLike], rows: Sequence[str], hollow: Sequence[bool]) -> Figure:
    """Draw means with their intervals: three panels abreast, each with its own axis and the same rows.

    Args:
        panels: Means and the ends of their intervals, `(rows, 3)`, by the title of their panel; NaN draws nothing.
        rows: Names of the rows, from above.
        hollow: Whether the mark of a row is hollow, such as those of networks with a temperature.

    Examples:
        >>> from calib_components.figures import mean_intervals
        >>> means = [[0.05, 0.04, 0.06], [0.03, 0.02, 0.04]]
        >>> figure = mean_intervals({"ECE": means}, ["SVLS", "SVLS + T"], [False, True])
    """
    figure, grid = panel_grid(len(panels), 3, 2.5, 0.7 + 0.21 * len(rows), extra=(1.4, 0))
    for (axes,), (title, table) in zip(grid, panels.items(), strict=True):
        for row, (mean, low, high) in enumerate(np.asarray(table, float)):
            axes.plot([low, high], [row, row], color=BLUE, linewidth=1.5)
            axes.plot(mean, row, "o", color=BLUE, markersize=5, markerfacecolor="white" if hollow[row] else BLUE)
        axes.set_title(title, fontsize="medium")
        first = is_first(axes)
        axes.set_yticks(range(len(rows)), [literal(name, NAME) for name in rows] if first else [""] * len(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize="small")
        axes.grid(axis="x", color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def rank_heat_map(ranks: ArrayLike, totals: ArrayLike, methods: Sequence[str], columns: Sequence[str]) -> Figure:
    """Draw the rank of each method in each column, next to the method's total, with the best method on top.

    Args:
        ranks: Ranks `(methods, columns)`; 1 is best, NaN leaves a cell empty.
        totals: One number per method, such as the sum or the mean of its ranks; the smallest is best.
        methods: Names of the methods.
        columns: Names of the columns, and one more for the totals.

    Examples:
        >>> from calib_components.figures import rank_heat_map
        >>> figure = rank_heat_map([[1, 2], [2, 1.5]], [3, 3.5], ["NACL", "SVLS"], ["DSC", "ECE", "sum"])
    """
    ranks, totals = np.asarray(ranks, float), np.asarray(totals, float)
    order = np.argsort(totals, kind="stable")
    height = (0.8 if max(map(len, columns)) <= TICK else 1.0) + 0.36 * len(methods)
    figure = Figure(figsize=(1.7 + 0.85 * len(columns), height), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[len(columns) - 1, 1])
    span = np.ptp(totals) or 1.0
    for axes, values, shade, names in (
        (left, ranks[order], (ranks[order] - 1) / max(len(methods) - 1, 1), columns[:-1]),
        (right, totals[order, None], (totals[order, None] - totals.min()) / span, columns[-1:]),
    ):
        axes.imshow(shade, cmap="Blues_r", vmin=-0.1, vmax=1.4, aspect="auto")
        fractions = values[~np.isnan(values)] % 1
        digits = 0 if (fractions == 0).all() else 1 if np.isin(fractions, (0, 0.5)).all() else 2
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                color = "white" if shade[row, column] < 0.3 else "black"  # whichever has more contrast
                axes.text(column, row, f"{value:.{digits}f}", ha="center", va="center", color=color)
        axes.set_xticks(range(len(names)), [literal(name, TICK, 2) for name in names])
        axes.xaxis.tick_top()
        axes.set_yticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    left.set_yticks(range(len(methods)), [literal(methods[i], NAME) for i in order])
    return figure


def rank_lines(panels: Mapping[str, ArrayLike], methods: Sequence[str], columns: Sequence[str]) -> Figure:
    """Draw how the rank of each method changes from column to column: crossing lines are rankings that disagree.

    Ranks do not tell differences from chance.

    Args:
        panels: Ranks `(methods, columns)` by the title of their panel; 1 is best and on top.
        methods: Names of the methods.
        columns: Names of the columns.

    Examples:
        >>> from calib_components.figures import rank_lines
        >>> figure = rank_lines({"without": [[1, 2], [2, 1]], "with": [[1, 1], [2, 2]]}, ["A", "B"], ["ECE", "NLL"])
    """
    size = (1.4 + (0.4 + 0.85 * len(columns)) * len(panels), 1.2 + 0.3 * len(methods))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    all_axes, last = figure.subplots(1, len(panels), squeeze=False)[0], len(columns) - 1
    for axes, (title, ranks) in zip(all_axes, panels.items(), strict=True):
        for index, of_method in enumerate(np.asarray(ranks, float)):
            name, style = literal(methods[index], NAME), "-" if index < len(PALETTE) else "--"
            axes.plot(of_method, style, color=class_color(index + 1), marker="o", markersize=14, linewidth=2)
            for column, rank in enumerate(of_method):
                axes.text(column, rank, f"{rank:g}", ha="center", va="center", fontsize="x-small")
            for beside, place, offset, side in ((all_axes[0], 0, -12, "right"), (all_axes[-1], last, 12, "left")):
                if axes is beside:
                    point: dict[str, Any] = {"textcoords": "offset points", "va": "center", "ha": side}
                    axes.annotate(name, (place, of_method[place]), (offset, 0), **point)
        axes.set_title(title, fontsize="medium")
        axes.set_xticks(range(len(columns)), [literal(name, TICK, 2) for name in columns], fontsize="small")
        axes.set(yticks=[], ylim=(len(methods) + 0.5, 0.5), xlim=(-0.3, last + 0.3))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def logit_bars(magnitudes: Mapping[str, ArrayLike], class_names: Sequence[str]) -> Figure:
    """Draw the mean magnitude of the logits: one panel per method, with one group of bars per ground-truth class.

    Args:
        magnitudes: Table `(N, N)` of each method, by ground-truth class and channel, as
            `calib_components.metrics.LogitMagnitudeMetric.magnitudes`.
        class_names: Names of the N classes.

    Examples:
        >>> from calib_components.figures import logit_bars
        >>> figure = logit_bars({"NACL": [[2.1, 0.3], [0.4, 1.9]]}, ["background", "heart"])
    """
    number = len(class_names)
    figure, grid = panel_grid(len(magnitudes), 4, 2.5, 2.3, extra=(0.6, 0.6), sharey=True)
    width = 0.8 / number
    for (axes,), (name, table) in zip(grid, magnitudes.items(), strict=True):
        for channel, values in enumerate(np.asarray(table, float).T):
            offset = (channel - (number - 1) / 2) * width
            axes.bar(np.arange(number) + offset, values, width, color=class_color(channel))
        axes.set_title(literal(name, NAME), fontsize="medium")
        axes.set_xticks(range(number), [literal(name, TICK, 4) for name in class_names], fontsize="x-small")
        axes.spines[["top", "right"]].set_visible(False)
    figure.supylabel("mean |logit|", fontsize="medium")
    figure.supxlabel("ground truth", fontsize="medium")
    handles = [Patch(color=class_color(k), label=literal(name, NAME)) for k, name in enumerate(class_names)]
    columns = min(number, min(len(magnitudes), 4) + 1)
    place: dict[str, Any] = {"loc": "outside upper center", "frameon": False, "fontsize": "small"}
    figure.legend(handles=handles, title="logit of", ncols=columns, **place)
    return figure
