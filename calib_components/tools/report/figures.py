"""Figures of reports, drawn from their numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

from calib_components.figures.style import (
    NAME,
    PALETTE,
    PANEL_TITLE,
    TICK,
    class_color,
    draw_legend,
    is_first,
    literal,
    panel_grid,
)

GREY, ORANGE, SKY, PINK, GREEN, _, RED, BLUE = PALETTE
RESOLUTION = 1e-4  # share of the voxels at the right end of the axis of coverage
COVERAGE_TICKS = (0, 0.5, 0.9, 0.99, 0.999, 1)
CURVES = {"sensitivity": (BLUE, "--"), "specificity": (GREY, ":"), "ppv": (ORANGE, "-."), "dsc": ("black", "-")}
ACRONYMS = ("ppv", "dsc")


def mean_intervals(panels: Mapping[str, ArrayLike], rows: Sequence[str], hollow: Sequence[bool]) -> Figure:
    """Draw means with their intervals: three panels abreast, each with its own axis and the same rows.

    Args:
        panels: Means and the ends of their intervals, `(rows, 3)`, by the title of their panel; NaN draws nothing.
        rows: Names of the rows, from above.
        hollow: Whether the mark of a row is hollow, such as those of networks with a temperature.
    """
    figure, grid = panel_grid(len(panels), 3, 2.5, 0.7 + 0.21 * len(rows), extra=(1.4, 0))
    for (axes,), (title, table) in zip(grid, panels.items(), strict=True):
        for row, (mean, low, high) in enumerate(np.asarray(table, float)):
            axes.plot([low, high], [row, row], color=BLUE, linewidth=1.5)
            axes.plot(mean, row, "o", color=BLUE, markersize=5, markerfacecolor="white" if hollow[row] else BLUE)
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


def rank_heat_map(ranks: ArrayLike, totals: ArrayLike, methods: Sequence[str], columns: Sequence[str]) -> Figure:
    """Draw the ranks `(methods, columns)` next to the total of each method, with the best method on top.

    `columns` has one more name, that of the totals.
    """
    ranks, totals = np.asarray(ranks, float), np.asarray(totals, float)
    order = np.argsort(totals, kind="stable")
    height = (0.8 if max(map(len, columns)) <= TICK else 1.0) + 0.36 * len(methods)
    figure = Figure(figsize=(1.7 + 0.85 * len(columns), height), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[len(columns) - 1, 1])
    for axes, values, lowest, highest, names in (
        (left, ranks[order], 1, len(methods), columns[:-1]),
        (right, totals[order, None], totals.min(), totals.max(), columns[-1:]),
    ):
        shade = (values - lowest) / (highest - lowest or 1)
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
    """Draw how the rank of each method changes from column to column: crossing lines are rankings that disagree."""
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
    """Draw the mean magnitude of the logits by ground-truth class and channel, `(N, N)`, one panel for each method."""
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


def volume_agreement(volumes: Mapping[str, Sequence[ArrayLike]], unit: str) -> Figure:
    """Draw the expected over the true volume of each case, one panel for each structure.

    A line through each case has its range, see `calib_components.metrics.measure_structures`. The true volume is in it
    if the line crosses the dashed one. Of the cases that have the structure, which the ground truth chooses, fewer than
    90 % may be in range.

    Args:
        volumes: Expected, true, low and high volume of each case, `(cases,)` each, by the name of the structure. Cases
            with a volume that is NaN are left out.
        unit: Unit of the volumes, such as "ml".
    """
    figure, grid = panel_grid(len(volumes), 3, 3.2 if len(volumes) > 1 else 4.6, 3.3, extra=(0, 1))
    for (axes,), (name, of_structure) in zip(grid, volumes.items(), strict=True):
        values = np.array([np.asarray(each, float) for each in of_structure])
        expected, true, low, high = values = values[:, ~np.isnan(values).any(0)]
        present, inside = true > 0, (low <= true) & (true <= high)
        largest = 1.05 * values.max(initial=0) or 1
        axes.plot([0, largest], [0, largest], color="black", linewidth=1, linestyle="--", label="expected = true")
        axes.vlines(true, low, high, color=GREY, linewidth=1.2, label="volume of p > 0.95 to p > 0.05")
        for chosen, color, marker, label in (
            (present & inside, BLUE, "o", "true volume in this range"),
            (present & ~inside, RED, "^", "true volume outside"),
            (~present, GREY, "x", "case without the structure"),
        ):
            marks: dict[str, Any] = {"color": color, "marker": marker, "zorder": 3, "clip_on": False, "label": label}
            axes.scatter(true[chosen], expected[chosen], 22, **marks)
        bias = f"bias {_signed((expected - true).mean())} {unit}" if len(true) else "no case"
        counts = f"in range: {(present & inside).sum()} of {present.sum()}"
        axes.set_title(f"{literal(name, PANEL_TITLE, 2)}\n{bias}\n{counts}", fontsize="medium")
        axes.set(xlim=(0, largest), ylim=(0, largest), xlabel=f"true volume ({unit})")
        if is_first(axes):
            axes.set_ylabel(f"expected volume ({unit})")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(4))
            axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    draw_legend(figure, grid[0][0], 2)
    return figure


def _signed(value: float) -> str:
    digits = 2 if abs(value) < 1 else 1 if abs(value) < 100 else 0
    return f"{round(value, digits) + 0.0:+,.{digits}f}"


def _short(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e4 else f"{value:g}"


def threshold_curves(tables: Mapping[str, pd.DataFrame], chosen: Mapping[str, float]) -> Figure:
    """Draw sensitivity, specificity, PPV and DSC over the threshold, the index of the table of each structure.

    A line and a dot on the DSC mark the threshold that was chosen on other cases. That of the highest DSC here would
    look better than it is.
    """
    figure, grid = panel_grid(len(tables), 3, 3.2 if len(tables) > 1 else 4.6, 2.6, extra=(0, 1))
    for (axes,), (name, table) in zip(grid, tables.items(), strict=True):
        for measure, (color, style) in CURVES.items():
            label = measure.upper() if measure in ACRONYMS else measure
            axes.plot(table[measure], color=color, linestyle=style, linewidth=1.8, label=label)
        if name in chosen:
            threshold = table.index[np.abs(table.index - chosen[name]).argmin()]
            axes.axvline(threshold, color="black", linewidth=0.8)
            axes.plot(threshold, table["dsc"][threshold], "o", color="black", label="chosen threshold")
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="threshold of the probability")
        axes.set_title(literal(name, PANEL_TITLE, 2), fontsize="medium")
        axes.grid(color="0.9")
        if is_first(axes):
            axes.set_ylabel("value")
    draw_legend(figure, grid[0][0], 3)
    return figure


def risk_coverage_curves(curves: Mapping[str, Sequence[ArrayLike]]) -> Figure:
    """Draw the error rate of the most confident voxels over their share, one curve for each method.

    The axis of coverage is logarithmic in the share of the voxels that are left out, since few of them are errors.
    """
    figure, axes = _one_panel(6.4, 3.6 + 0.2 * math.ceil(len(curves) / 2))
    styles = cycle([(color, style) for style in ("-", "--", ":") for color in (BLUE, ORANGE, GREEN, PINK, RED, SKY)])
    for (name, (coverage, risk)), (color, style) in zip(curves.items(), styles, strict=False):
        percent = 100 * np.asarray(risk, float)
        axes.plot(coverage, percent, color=color, linestyle=style, linewidth=1.8, label=literal(name, NAME))
    stretch = lambda share: -np.log10(np.maximum(1 - np.asarray(share), 0) + RESOLUTION)  # noqa: E731
    axes.set_xscale("function", functions=(stretch, lambda place: 1 + RESOLUTION - 10 ** -np.asarray(place)))
    axes.set_xticks(COVERAGE_TICKS, [f"{100 * tick:g}" for tick in COVERAGE_TICKS])
    axes.minorticks_off()
    axes.set(xlim=(0, 1), xlabel="coverage: most confident voxels (%)", ylabel="risk: errors among them (%)")
    axes.set_ylim(bottom=0)
    draw_legend(figure, axes, 2)
    return figure


def expected_dsc_scatter(expected: ArrayLike, true: ArrayLike) -> Figure:
    """Draw the true DSC of each case over its expected DSC. If low confidence finds the bad cases, points rise."""
    values = np.array([expected, true], float)
    expected, true = values = values[:, ~np.isnan(values).any(0)]
    lowest = math.floor(10 * values.min(initial=0.9)) / 10
    figure, axes = _one_panel(4.6, 4.4)
    axes.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--", label="true = expected")
    axes.scatter(expected, true, 26, color=BLUE, alpha=0.8, zorder=3, clip_on=False, label="case")
    axes.set(xlim=(lowest, 1), ylim=(lowest, 1), xlabel="expected DSC, from probabilities alone", ylabel="true DSC")
    draw_legend(figure, axes, 2)
    return figure


def _one_panel(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.grid(color="0.9")
    return figure, axes
