"""Figures for readers of segmentations: volumes, thresholds, where errors are, and a case."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

from calib_components.figures.style import (
    NAME,
    PALETTE,
    PANEL_TITLE,
    TITLE,
    class_color,
    draw_legend,
    is_first,
    literal,
    panel_grid,
)
from calib_components.metrics import ThresholdTable

GREY, ORANGE, SKY, PINK, GREEN, _, RED, BLUE = PALETTE
WIDTH, PANEL = 6.4, 3.2  # of a figure and of one of several panels, in inches
TALLEST = 8  # heights of a panel by its width: a slice of 1 x 512 pixels would be a picture of hundreds of megabytes
RESOLUTION = 1e-4  # share of the voxels at the right end of the axis of coverage
COVERAGE_TICKS = (0, 0.5, 0.9, 0.99, 0.999, 1)
CURVES = {  # what a table of thresholds has
    "sensitivity": ("sensitivity", BLUE, "--"),
    "specificity": ("specificity", GREY, ":"),
    "ppv": ("PPV", ORANGE, "-."),
    "dsc": ("DSC", "black", "-"),
}


def volume_agreement(volumes: Mapping[str, Sequence[ArrayLike]], unit: str) -> Figure:
    """Draw the expected over the true volume of each case, one panel for each structure.

    A line from the volume with probability above 0.95 to that with probability above 0.05 is drawn through each case.
    If probabilities were true and all voxels fully dependent, at least 90 % of the true volumes of all cases would be
    in this range, see `calib_components.metrics.structure_volumes`. Those are the cases whose line crosses the dashed
    one. The title shows the bias, that is, the mean of the expected minus the true volume, and how many of the cases
    that have the structure are in range; of these alone, which the ground truth chooses, it may be less than 90 %.

    Args:
        volumes: Expected, true, low and high volume of each case, `(cases,)` each, by the name of the structure, as
            `calib_components.metrics.Volumes` begins. Cases with a volume that is NaN are left out.
        unit: Unit of the volumes, such as "ml".

    Examples:
        >>> from calib_components.figures import volume_agreement
        >>> figure = volume_agreement({"tumour": ([3.1, 8.0], [2.9, 9.5], [2.0, 5.1], [4.2, 9.1])}, "ml")
    """
    unit = literal(unit, NAME)
    figure, grid = panel_grid(len(volumes), 3, PANEL if len(volumes) > 1 else 4.6, 3.3, extra=(0, 1))
    for (axes,), (name, of_structure) in zip(grid, volumes.items(), strict=True):
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


def threshold_curves(tables: Mapping[str, ThresholdTable], chosen: Mapping[str, float] | None = None) -> Figure:
    """Draw sensitivity, specificity, PPV and DSC over the threshold, one panel for each structure.

    A line and a dot on the DSC mark the chosen threshold. The threshold of the highest DSC is not marked: chosen on the
    cases of the figure, it would look better than it is.

    Args:
        tables: Table of each structure, as `calib_components.metrics.ThresholdCounts.table` returns it.
        chosen: Threshold chosen on other cases, by the name of the structure; none are marked by default.

    Examples:
        >>> import torch
        >>> from calib_components.figures import threshold_curves
        >>> from calib_components.metrics import ThresholdTable
        >>> values = torch.tensor([0.9, 0.7, 0.4])
        >>> table = ThresholdTable(torch.tensor([0.25, 0.5, 0.75]), values, 1 - 0.1 * values, 1 - values / 2, values)
        >>> figure = threshold_curves({"tumour": table}, {"tumour": 0.5})
    """
    figure, grid = panel_grid(len(tables), 3, PANEL if len(tables) > 1 else 4.6, 2.6, extra=(0, 1))
    for (axes,), (name, table) in zip(grid, tables.items(), strict=True):
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
        if is_first(axes):
            axes.set_ylabel("value")
    draw_legend(figure, grid[0][0], 3)
    return figure


def risk_coverage_curves(coverage: ArrayLike, risks: Mapping[str, ArrayLike]) -> Figure:
    """Draw the error rate of the most confident voxels over their share, one curve for each method.

    The axis of coverage is logarithmic in the share of the voxels that are left out, since few of them are errors.

    Args:
        coverage: Shares of the voxels, `(K,)`.
        risks: Error rate at each coverage, `(K,)`, by the name of the method; such as the mean over cases of the `risk`
            of a `calib_components.metrics.RiskCoverageMetric`.

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
    stretch = lambda share: -np.log10(np.maximum(1 - np.asarray(share), 0) + RESOLUTION)  # noqa: E731
    axes.set_xscale("function", functions=(stretch, lambda place: 1 + RESOLUTION - 10 ** -np.asarray(place)))
    axes.set_xticks(COVERAGE_TICKS, [f"{100 * tick:g}" for tick in COVERAGE_TICKS])
    axes.minorticks_off()
    axes.set(xlim=(0, 1), xlabel="coverage: most confident voxels (%)", ylabel="risk: errors among them (%)")
    axes.set_ylim(bottom=0)
    axes.grid(color="0.9")
    draw_legend(figure, axes, 2)
    return figure


def expected_dsc_scatter(expected: ArrayLike, true: ArrayLike) -> Figure:
    """Draw the true DSC of each case over the DSC that its probabilities alone let expect.

    If low confidence finds the bad cases, points rise from the lower left. Those below the dashed line are worse than
    expected.

    Args:
        expected: Expected DSC of each case, `(cases,)`, see `calib_components.metrics.expected_dsc`.
        true: True DSC, `(cases,)`. Cases in which one of the two is NaN are left out.

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
    axes.set(xlim=(lowest, 1), ylim=(lowest, 1), xlabel="expected DSC, from probabilities alone", ylabel="true DSC")
    axes.grid(color="0.9")
    draw_legend(figure, axes, 2)
    return figure


def uncertainty_overlay(
    image: ArrayLike | None,
    label: ArrayLike,
    prediction: ArrayLike,
    uncertainty: ArrayLike | None,
    class_names: Sequence[str],
    title: str = "",
) -> Figure:
    """Draw one slice three times: with contours of the ground truth, contours of the prediction, and the uncertainty.

    A slice of less than 2 x 2 pixels has no contours.

    Args:
        image: Grey values `(H, W)`; the first axis points right, the second down. None draws on plain grey. Values that
            are not finite are drawn as the smallest that is.
        label: Class index of the ground truth, `(H, W)`; 0 is background.
        prediction: Predicted class index, `(H, W)`.
        uncertainty: Uncertainty from 0 (certain) to 1, `(H, W)`; None leaves out its panel.
        class_names: Names of the classes, background first. The legend shows those that are in the slice.
        title: Title of the figure, of one or more lines.

    Raises:
        ValueError: A class in the slice has no name. Voxels to leave out need a class index and a name, such as those
            of the background.

    Examples:
        >>> import numpy as np
        >>> from calib_components.figures import uncertainty_overlay
        >>> label = np.zeros((32, 32), int)
        >>> label[8:16, 8:16] = 1
        >>> image = np.random.default_rng(0).normal(label)
        >>> figure = uncertainty_overlay(image, label, label, label / 2, ["background", "heart"])
    """
    label, prediction = (np.asarray(each).T.astype(np.int64) for each in (label, prediction))
    image = np.zeros(label.shape) if image is None else np.asarray(image, float).T
    finite = np.isfinite(image)
    image = np.where(finite, image, image[finite].min() if finite.any() else 0)
    drawn = np.union1d(label[label > 0], prediction[prediction > 0])
    if drawn.size and drawn[-1] >= len(class_names):
        raise ValueError(f"class_names has {len(class_names)} names, but the slice has class {drawn[-1]}.")
    names = [literal(class_names[k], NAME) for k in drawn]
    columns = max(1, min(4, TITLE // (max(map(len, names), default=0) + 6)))
    lines = title.count("\n") + 1 + math.ceil(len(names) / columns)
    titles = ["ground truth", "prediction", "uncertainty"][: 2 if uncertainty is None else 3]
    ratio = min(image.shape[0] / image.shape[1], TALLEST)
    figure = Figure(figsize=(WIDTH, 5.85 / len(titles) * ratio + 0.45 + 0.2 * lines), dpi=150, layout="constrained")
    figure.suptitle("\n".join(literal(line, TITLE) for line in title.split("\n")), fontsize="medium")
    low, high = np.percentile(image, [0.5, 99.5]) if image.any() else (-1, 1)  # nothing to see is grey, not black
    panels = figure.subplots(1, len(titles))
    for axes, name in zip(panels, titles, strict=True):
        axes.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        axes.set_title(name, fontsize="small")
        axes.set_axis_off()
    for axes, classes in zip(panels, (label, prediction), strict=False):
        for k in np.unique(classes[classes > 0]) if min(classes.shape) > 1 else ():
            axes.contour(classes == k, levels=[0.5], colors=[class_color(k)], linewidths=1.2)
    if uncertainty is not None:
        uncertainty = np.asarray(uncertainty).T
        alpha = np.clip(4 * uncertainty, 0, 0.9)
        overlay = panels[2].imshow(uncertainty, cmap="inferno", vmin=0, vmax=1, alpha=alpha, interpolation="nearest")
        figure.colorbar(overlay, ax=panels[2], fraction=0.046, pad=0.02, ticks=[0, 0.5, 1])
    handles = [Patch(color=class_color(k), label=name) for k, name in zip(drawn, names, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize="small")
    return figure


def _signed(value: float) -> str:
    digits = 2 if abs(value) < 1 else 1 if abs(value) < 100 else 0
    return f"{round(value, digits) + 0.0:+,.{digits}f}"


def _short(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e4 else f"{value:g}"
