"""Figures of what probabilities tell a reader of segmentations: volumes, thresholds, and where errors are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from calib_components.figures.style import NAME, literal
from calib_components.metrics import ThresholdTable

__all__ = ["expected_dsc_scatter", "risk_coverage_curves", "threshold_curves", "volume_agreement"]

WIDTH = 6.4  # of a figure in inches: its text is legible where a page shows it 500 pixels wide
PANEL = WIDTH / 2  # width of one of several panels
MOST_PANELS = 3  # in a row
PANEL_TITLE = 26  # characters that fit above one of several panels
# Suited to colour-blind readers (Okabe and Ito), without the light ones.
BLUE, ORANGE, GREEN, PINK, RED, SKY, GREY = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#999999"
)  # fmt: skip
CURVES = {  # what a table of thresholds has
    "sensitivity": ("sensitivity", BLUE, "--"),
    "specificity": ("specificity", GREY, ":"),
    "ppv": ("PPV", ORANGE, "-."),
    "dsc": ("DSC", "black", "-"),
}
RESOLUTION = 1e-4  # share of the voxels at the right end of the axis of coverage
COVERAGE_TICKS = (0, 0.5, 0.9, 0.99, 0.999, 1)


def volume_agreement(volumes: Mapping[str, Sequence[ArrayLike]], unit: str) -> Figure:
    """Draw the expected over the true volume of each case, one panel for each structure.

    A line from the volume with probability above 0.95 to that with probability above 0.05 is drawn through each case.
    If probabilities were true and all voxels fully dependent, at least 90 % of the true volumes of all cases would be
    in this range, see `calib_components.metrics.structure_volumes`. Those are the cases whose line crosses the dashed
    one. The title shows the bias, that is, the mean of the expected minus the true volume, and how many of the cases
    that have the structure are in range; of these alone, which the ground truth chooses, it may be less than 90 %.

    Args:
        volumes: Expected, true, low and high volume of each case, `(cases,)` each, by the name of the structure, as
            `calib_components.metrics.Volumes` begins; what follows is not drawn. Cases with a volume that is NaN are
            left out.
        unit: Unit of the volumes, such as "ml".

    Returns:
        A figure without a window.

    Examples:
        >>> from calib_components.figures import volume_agreement
        >>> figure = volume_agreement({"tumour": ([3.1, 8.0], [2.9, 9.5], [2.0, 5.1], [4.2, 9.1])}, "ml")
    """
    unit = literal(unit, NAME)
    if not volumes:
        raise ValueError("volumes: expected at least one structure, got none")
    figure, panels = _panels(len(volumes), 3.3, f"expected volume ({unit})")
    for axes, (name, of_structure) in zip(panels, volumes.items(), strict=True):
        values = np.array([np.asarray(each, float) for each in of_structure[:4]])
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
            at = true[chosen], expected[chosen]
            axes.scatter(*at, 22, color=color, marker=marker, zorder=3, clip_on=False, label=label)
        bias = f"bias {_signed((expected - true).mean())} {unit}" if len(true) else "no case"
        counts = f"in range: {(present & inside).sum()} of {present.sum()}"
        axes.set_title(f"{literal(name, PANEL_TITLE, 2)}\n{bias}\n{counts}", fontsize="medium")
        axes.set(xlim=(0, largest), ylim=(0, largest), xlabel=f"true volume ({unit})")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(4))
            axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    _legend(figure, panels[0], 2)
    return figure


def threshold_curves(tables: Mapping[str, ThresholdTable], chosen: Mapping[str, float] | None = None) -> Figure:
    """Draw sensitivity, specificity, PPV and DSC over the threshold, one panel for each structure.

    A line and a dot on the DSC mark the chosen threshold. The threshold of the highest DSC is not marked: chosen on the
    cases of the figure, it would look better than it is.

    Args:
        tables: Table of each structure, as `calib_components.metrics.ThresholdCounts.table` returns it.
        chosen: Threshold chosen on other cases, by the name of the structure, one of the table; none are marked by
            default.

    Returns:
        A figure without a window.

    Examples:
        >>> import torch
        >>> from calib_components.figures import threshold_curves
        >>> from calib_components.metrics import ThresholdTable
        >>> values = torch.tensor([0.9, 0.7, 0.4])
        >>> table = ThresholdTable(torch.tensor([0.25, 0.5, 0.75]), values, 1 - 0.1 * values, 1 - values / 2, values)
        >>> figure = threshold_curves({"tumour": table}, {"tumour": 0.5})
    """
    if not tables:
        raise ValueError("tables: expected at least one structure, got none")
    figure, panels = _panels(len(tables), 2.6, "value")
    for axes, (name, table) in zip(panels, tables.items(), strict=True):
        thresholds = table.thresholds.cpu()
        for field, (label, color, style) in CURVES.items():
            axes.plot(thresholds, getattr(table, field).cpu(), color=color, linestyle=style, linewidth=1.8, label=label)
        if chosen is not None and name in chosen:
            index = int(np.abs(np.asarray(thresholds) - chosen[name]).argmin())
            axes.axvline(thresholds[index].item(), color="black", linewidth=0.8)
            axes.plot(thresholds[index], table.dsc[index].cpu(), "o", color="black", label="chosen threshold")
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="threshold of the probability")
        axes.set_title(literal(name, PANEL_TITLE, 2), fontsize="medium")
        axes.grid(color="0.9")
    _legend(figure, panels[0], 3)
    return figure


def risk_coverage_curves(coverage: ArrayLike, risks: Mapping[str, ArrayLike]) -> Figure:
    """Draw the error rate of the most confident voxels over their share, one curve for each method.

    The axis of coverage is logarithmic in the share of the voxels that are left out, since few of them are errors.

    Args:
        coverage: Shares of the voxels, `(K,)`.
        risks: Error rate at each coverage, `(K,)`, by the name of the method; such as the mean over cases of the `risk`
            of a `calib_components.metrics.RiskCoverageMetric`.

    Returns:
        A figure without a window.

    Examples:
        >>> from calib_components.figures import risk_coverage_curves
        >>> figure = risk_coverage_curves([0.5, 0.9, 1], {"NACL": [0, 0.01, 0.04], "SVLS": [0.01, 0.01, 0.05]})
    """
    figure = Figure(figsize=(WIDTH, 3.6 + 0.2 * math.ceil(len(risks) / 2)), dpi=150, layout="constrained")
    axes = figure.subplots()
    styles = cycle([(color, style) for style in ("-", "--", ":") for color in (BLUE, ORANGE, GREEN, PINK, RED, SKY)])
    for (name, risk), (color, style) in zip(risks.items(), styles, strict=False):
        curve = 100 * np.asarray(risk, float)
        axes.plot(coverage, curve, color=color, linestyle=style, linewidth=1.8, label=literal(name, NAME))
    axes.set_xscale("function", functions=(_stretch, _shrink))
    axes.set_xticks(COVERAGE_TICKS, [f"{100 * tick:g}" for tick in COVERAGE_TICKS])
    axes.minorticks_off()
    axes.set(xlim=(0, 1), xlabel="coverage: most confident voxels (%)", ylabel="risk: errors among them (%)")
    axes.set_ylim(bottom=0)
    axes.grid(color="0.9")
    _legend(figure, axes, 2)
    return figure


def expected_dsc_scatter(expected: ArrayLike, true: ArrayLike) -> Figure:
    """Draw the true DSC of each case over the DSC that its probabilities alone let expect.

    If low confidence finds the bad cases, points rise from the lower left. Those below the dashed line are worse than
    expected.

    Args:
        expected: Expected DSC of each case, `(cases,)`, see `calib_components.metrics.expected_dsc`.
        true: True DSC, `(cases,)`. Cases in which one of the two is NaN are left out.

    Returns:
        A figure without a window.

    Examples:
        >>> from calib_components.figures import expected_dsc_scatter
        >>> figure = expected_dsc_scatter([0.91, 0.72, 0.88], [0.93, 0.61, 0.85])
    """
    values = np.array([np.asarray(expected, float), np.asarray(true, float)])
    expected, true = values = values[:, ~np.isnan(values).any(0)]
    lowest = math.floor(10 * values.min(initial=0.9)) / 10
    figure = Figure(figsize=(4.6, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--", label="true = expected")
    axes.scatter(expected, true, 26, color=BLUE, alpha=0.8, zorder=3, clip_on=False, label="case")
    axes.set(xlim=(lowest, 1), ylim=(lowest, 1))
    axes.set(xlabel="expected DSC, from probabilities alone", ylabel="true DSC")
    axes.grid(color="0.9")
    _legend(figure, axes, 2)
    return figure


def _panels(number: int, height: float, ylabel: str) -> tuple[Figure, list[Axes]]:
    """A figure with up to three panels in a row, and rows of nearly the same length."""
    rows = math.ceil(number / MOST_PANELS)
    columns = math.ceil(number / rows)
    figure = Figure(figsize=(PANEL * columns if columns > 1 else 4.6, height * rows + 1), dpi=150, layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    panels = [figure.add_subplot(grid[divmod(i, columns)]) for i in range(number)]
    for axes in panels[::columns]:
        axes.set_ylabel(ylabel)
    return figure, panels


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize="small")


def _stretch(coverage: NDArray) -> NDArray:
    return -np.log10(np.maximum(1 - np.asarray(coverage), 0) + RESOLUTION)


def _shrink(position: NDArray) -> NDArray:
    return 1 + RESOLUTION - 10 ** -np.asarray(position)


def _signed(value: float) -> str:
    digits = 2 if abs(value) < 1 else 1 if abs(value) < 100 else 0
    return f"{round(value, digits) + 0.0:+,.{digits}f}"


def _short(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e4 else f"{value:g}"
