"""Figures, drawn from saved results without running a network."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from calib_components.metrics import CalibrationBins

__all__ = ["logit_bars", "rank_heat_map", "reliability_diagram", "uncertainty_overlay"]

MAX_COLUMNS = 5
SMALLEST_SHARE = 1e-5  # where the axis of shares begins


def reliability_diagram(bins: CalibrationBins, class_names: Sequence[str] | None = None) -> Figure:
    """Accuracy in each bin over its confidence, and below it the share of voxels in the bin, all cases pooled.

    Blue and yellow end at the accuracy, blue and red at the mean confidence of the bin. Bins with less than 0.001 % of
    the voxels, whose accuracy is that of a few voxels, are not drawn. Top-label bins make one panel, classwise bins one
    for each class; the title gives the ECE over all of the panel's voxels. Saved bins are drawn with
    `reliability_diagram(CalibrationBins.from_dict(saved))`.

    Args:
        bins: top-label `(B, bins)` or classwise `(B, N, bins)`.
        class_names: N names, for classwise bins only; their indices if None.

    Returns:
        A figure that belongs to no window; save it with `figure.savefig(path)`.

    Raises:
        ValueError: if the number of names is not that of the classes.
    """
    pooled = bins.pooled()
    if pooled.count.ndim == 2:
        panels, titles = [pooled], ["Predicted class"]
    else:
        fields = (pooled.count, pooled.confidence, pooled.accuracy)
        panels = [CalibrationBins(*of_class) for of_class in zip(*(field.unbind(1) for field in fields), strict=True)]
        titles = [f"Class {k}" for k in range(len(panels))] if class_names is None else list(class_names)
    if len(titles) != len(panels):
        raise ValueError(f"class_names must name the {len(panels)} classes of the bins, got {titles}.")

    columns = min(len(panels), MAX_COLUMNS)
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3 * columns + 1, 4.2 * rows + 0.4), dpi=150, layout="constrained")
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[3, 1] * rows)
    for number, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        row, column = divmod(number, columns)
        upper, lower = figure.add_subplot(grid[2 * row, column]), figure.add_subplot(grid[2 * row + 1, column])
        _draw_panel(upper, lower, panel, title)
        if column == 0:
            upper.set_ylabel("Accuracy" if pooled.count.ndim == 2 else "Frequency of the class")
            lower.set_ylabel("Voxels")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, 2 * columns), frameon=False)
    return figure


def _draw_panel(upper: Axes, lower: Axes, bins: CalibrationBins, title: str) -> None:
    count, confidence, accuracy = (
        np.asarray(field[0].cpu(), dtype=float) for field in (bins.count, bins.confidence, bins.accuracy)
    )
    shown = np.flatnonzero(count > SMALLEST_SHARE * count.sum())
    share = count[shown] / count.sum()
    confidence, accuracy = confidence[shown] / count[shown], accuracy[shown] / count[shown]
    width = 1 / len(count)
    draw = partial(upper.bar, shown * width, width=width, align="edge", edgecolor="white", linewidth=0.5)
    over, under = np.maximum(confidence - accuracy, 0), np.maximum(accuracy - confidence, 0)
    draw(accuracy, color="tab:blue", label="accuracy")
    draw(over, bottom=accuracy, color="lightcoral", label="gap, overconfident")
    draw(under, bottom=confidence, color="gold", label="gap, underconfident")
    upper.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--", label="perfect calibration")
    upper.set(xlim=(0, 1), ylim=(0, 1), title=f"{title}\npooled ECE {bins.expected_error().item():.4f}")
    upper.tick_params(labelbottom=False)

    lower.bar(shown * width, share, width=width, align="edge", color="tab:gray", edgecolor="white", linewidth=0.5)
    lower.set(xlim=(0, 1), yscale="log", ylim=(SMALLEST_SHARE, 1), xlabel="Confidence")
    lower.set_yticks([1e-4, 1e-2, 1], labels=["0.01 %", "1 %", "100 %"])


def rank_heat_map(ranks: ArrayLike, totals: ArrayLike, methods: Sequence[str], columns: Sequence[str]) -> Figure:
    """Ranks of methods in every column beside their total, the best method on top.

    Args:
        ranks: `(methods, columns)`, 1 is best; NaN leaves a field empty.
        totals: `(methods,)`, such as the sum or the mean of the ranks; the smallest is best.
        methods: their names.
        columns: names of the columns, and one more for the totals.
    """
    ranks, totals = np.asarray(ranks, float), np.asarray(totals, float)
    order = np.argsort(totals, kind="stable")
    figure = Figure(figsize=(1.7 + 0.85 * len(columns), 0.8 + 0.36 * len(methods)), dpi=150, layout="constrained")
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
                color = "white" if shade[row, column] < 0.6 else "black"
                axes.text(column, row, f"{value:.{digits}f}", ha="center", va="center", color=color)
        axes.set_xticks(range(len(names)), names)
        axes.xaxis.tick_top()
        axes.set_yticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    left.set_yticks(range(len(methods)), [methods[i] for i in order])
    return figure


def logit_bars(magnitudes: Mapping[str, ArrayLike], class_names: Sequence[str]) -> Figure:
    """Mean magnitude of the logits: a panel for each method, a group of bars for each ground truth class.

    Args:
        magnitudes: name of a method to its `(N, N)` table, ground truth class first, then channel.
        class_names: N names.
    """
    tables = {name: np.asarray(table, float) for name, table in magnitudes.items()}
    num_classes = len(class_names)
    columns = min(len(tables), 4)
    rows = math.ceil(len(tables) / columns)
    figure = Figure(figsize=(2.5 * columns + 0.6, 2.3 * rows + 0.6), dpi=150, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    width = 0.8 / num_classes
    for axes, (name, table) in zip(panels, tables.items(), strict=False):
        for channel in range(num_classes):
            offset = (channel - (num_classes - 1) / 2) * width
            axes.bar(np.arange(num_classes) + offset, table[:, channel], width, color=_class_color(channel))
        axes.set_title(name, fontsize="medium")
        axes.set_xticks(range(num_classes), [textwrap.fill(name, 10) for name in class_names], fontsize="x-small")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(tables) :]:
        axes.remove()
    figure.supylabel("mean |logit|", fontsize="medium")
    figure.supxlabel("ground truth", fontsize="medium")
    handles = [Patch(color=_class_color(k)) for k in range(num_classes)]
    figure.legend(
        handles,
        class_names,
        title="logit of",
        loc="outside upper center",
        ncols=min(num_classes, columns + 1),
        frameon=False,
        fontsize="small",
    )
    return figure


def uncertainty_overlay(
    image: ArrayLike,
    label: ArrayLike,
    prediction: ArrayLike,
    uncertainty: ArrayLike,
    class_names: Sequence[str],
    title: str = "",
) -> Figure:
    """One slice three times: contours of the ground truth, contours of the prediction, and the uncertainty.

    Args:
        image: grey values `(H, W)`; the first axis runs to the right, the second down.
        label: class index of the ground truth `(H, W)`; 0 is background.
        prediction: predicted class index `(H, W)`.
        uncertainty: 0 (certain) to 1 `(H, W)`.
        class_names: of the background and the other classes.
        title: of the figure.
    """
    image, label, prediction, uncertainty = (np.asarray(x).T for x in (image, label, prediction, uncertainty))
    height = 1.95 * image.shape[0] / image.shape[1]
    figure = Figure(figsize=(6.4, height + 0.85), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize="medium")
    low, high = np.percentile(image, [0.5, 99.5])
    panels = figure.subplots(1, 3)
    for axes, name in zip(panels, ("ground truth", "prediction", "uncertainty"), strict=True):
        axes.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        axes.set_title(name, fontsize="small")
        axes.set_axis_off()
    for axes, classes in zip(panels, (label, prediction), strict=False):
        for k in np.unique(classes[classes > 0]):
            axes.contour(classes == k, levels=[0.5], colors=[_class_color(k)], linewidths=1.2)
    alpha = np.clip(4 * uncertainty, 0, 0.9)
    overlay = panels[2].imshow(uncertainty, cmap="inferno", vmin=0, vmax=1, alpha=alpha, interpolation="nearest")
    figure.colorbar(overlay, ax=panels[2], fraction=0.046, pad=0.02, ticks=[0, 0.5, 1])
    handles = [Patch(color=_class_color(k), label=name) for k, name in enumerate(class_names) if k > 0]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize="small")
    return figure


def _class_color(k: int) -> str:
    """Gray for the background, then colours that stay apart for the colour-blind (Okabe and Ito)."""
    return ("#999999", "#e69f00", "#56b4e9", "#cc79a7", "#009e73", "#f0e442", "#d55e00", "#0072b2")[k % 8]
