"""Figures, drawn from saved results without running a network. Requires matplotlib, unlike losses and metrics."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray

from calib_components.errors import printable
from calib_components.metrics import CalibrationBins, consistency_bands, resampled_errors

__all__ = ["logit_bars", "rank_heat_map", "reliability_diagram", "uncertainty_overlay"]

MAX_COLUMNS = 5
TITLE, NAME, TICK = (
    75,
    40,
    10,
)  # characters that fit into a line: of a figure's title, in a legend, below a group of bars
SMALLEST_SHARE = 1e-5  # where the axis of shares begins
IF_TRUE = "if probabilities were true"


def reliability_diagram(
    bins: CalibrationBins | Mapping[str, CalibrationBins],
    class_names: Sequence[str] | None = None,
    if_true: CalibrationBins | Mapping[str, CalibrationBins] | None = None,
    bands: bool = False,
) -> Figure:
    """Draw accuracy over confidence, and below it the fraction of voxels in each bin, with all cases pooled.

    Blue plus yellow reaches the mean accuracy of a bin, blue plus red its mean confidence. Bins with less than 0.001 %
    of the voxels are not drawn, because their accuracy is that of a few voxels. Top-label bins give one panel,
    classwise bins one panel per class. The title shows the ECE of all voxels in the panel.

    Black marks show the accuracy to expect if the probabilities were true, and the title the ECE to expect. In a region
    chosen by the ground truth, that accuracy is not the mean confidence; `if_true` has it. In a region chosen by the
    prediction, only sampling is left, and `bands` shows its size. Bands come from resampled labels and assume that
    voxels are independent; those of one image are not, so deviations are larger.

    Args:
        bins: Top-label bins `(B, bins)` or classwise bins `(B, N, bins)`, such as the `bins` of a metric; or top-label
            bins by the title of their panel.
        class_names: Names of the N classes, for classwise bins only; None uses their indices.
        if_true: Bins if the probabilities were true, in the form of `bins`, such as the `bins_if_true` of a metric. By
            title, those of some panels are enough.
        bands: Whether to draw where 95 % of the accuracies of resampled labels are, in panels without `if_true`.

    Returns:
        A figure without a window; save it with `figure.savefig(path)`.

    Raises:
        ValueError: Names are not one for each class, bins by title are classwise, or `if_true` does not match `bins`.

    Source: Broecker and Smith, "Increasing the Reliability of Reliability Diagrams", Weather and Forecasting 22, 2007
    (the bands).

    Examples:
        >>> import torch
        >>> from calib_components.figures import reliability_diagram
        >>> from calib_components.metrics import CalibrationBins, ECEMetric
        >>> metric = ECEMetric()
        >>> _ = metric(torch.rand(1, 4, 32, 32, 8).softmax(1), torch.randint(4, (1, 1, 32, 32, 8)))
        >>> reliability_diagram(metric.bins, if_true=metric.bins_if_true).savefig("reliability.png")  # doctest: +SKIP

        Saved bins are drawn in the same way:

        >>> saved = metric.bins.to_dict()
        >>> figure = reliability_diagram(CalibrationBins.from_dict(saved))
    """
    panels = _panels(bins, class_names)
    expected = {} if if_true is None else _panels(if_true, class_names)
    for title, panel in expected.items():
        if title not in panels or panel.count.shape != panels[title].count.shape:
            raise ValueError(f"if_true: expected the panels and number of bins of bins, got others in {title!r}")

    columns = min(len(panels), MAX_COLUMNS)
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3 * columns + 1, 4.2 * rows + 0.4), dpi=150, layout="constrained")
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[3, 1] * rows)
    legend: dict[str, Artist] = {}
    for number, (title, panel) in enumerate(panels.items()):
        row, column = divmod(number, columns)
        upper, lower = figure.add_subplot(grid[2 * row, column]), figure.add_subplot(grid[2 * row + 1, column])
        _draw_panel(upper, lower, panel, _literal(title, 26, 3))
        if title in expected:
            _mark_if_true(upper, panel, expected[title])
        elif bands:
            _mark_bands(upper, panel)
        if column == 0:
            classwise = isinstance(bins, CalibrationBins) and bins.count.ndim == 3
            upper.set_ylabel("Frequency of the class" if classwise else "Accuracy")
            lower.set_ylabel("Voxels")
        for handle, label in zip(*upper.get_legend_handles_labels(), strict=True):
            legend.setdefault(label, handle)
    columns = min(4 if len(legend) == 4 else 3, 2 * columns)
    figure.legend([*legend.values()], [*legend], loc="outside lower center", ncols=columns, frameon=False)
    return figure


def _panels(
    bins: CalibrationBins | Mapping[str, CalibrationBins], class_names: Sequence[str] | None
) -> dict[str, CalibrationBins]:
    """Bins `(1, bins)` of each panel by its title."""
    if isinstance(bins, Mapping):
        for title, panel in bins.items():
            if panel.count.ndim == 3:
                raise ValueError(f"bins: expected top-label bins for each title, got classwise bins for {title!r}")
        return {title: panel.pooled() for title, panel in bins.items()}
    if bins.count.ndim == 2:
        return {"Predicted class": bins.pooled()}
    panels = bins.pooled().per_class()
    titles = [f"Class {k}" for k in range(len(panels))] if class_names is None else list(class_names)
    if len(set(titles)) != len(panels) or len(titles) != len(panels):
        raise ValueError(f"class_names: expected {len(panels)} names, one per class of the bins, got {titles}")
    return dict(zip(titles, panels, strict=True))


def _draw_panel(upper: Axes, lower: Axes, bins: CalibrationBins, title: str) -> None:
    count, confidence, accuracy = (
        np.asarray(field[0].cpu(), dtype=float) for field in (bins.count, bins.confidence, bins.accuracy)
    )
    shown = _shown(bins)
    share, confidence, accuracy = count[shown] / count.sum(), confidence[shown], accuracy[shown]
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


def _shown(bins: CalibrationBins) -> NDArray[np.int64]:
    """Indices of the bins that are drawn."""
    count = bins.count[0].cpu().numpy()
    return np.flatnonzero(count > SMALLEST_SHARE * count.sum())


def _mark_if_true(axes: Axes, bins: CalibrationBins, if_true: CalibrationBins) -> None:
    """Draw a line at the accuracy of each bin if the probabilities were true."""
    shown, width = _shown(bins), 1 / bins.count.shape[1]
    accuracy = if_true.accuracy[0].cpu().numpy()[shown]
    axes.hlines(accuracy, (shown + 0.15) * width, (shown + 0.85) * width, color="black", label="accuracy if true")
    axes.set_title(f"{axes.get_title()}\n{if_true.expected_error().item():.4f} {IF_TRUE}")


def _mark_bands(axes: Axes, bins: CalibrationBins) -> None:
    """Draw where the accuracy of each bin would be if the probabilities were true and voxels independent."""
    shown, width = _shown(bins), 1 / bins.count.shape[1]
    low, high = (bound[0].cpu().numpy()[shown] for bound in consistency_bands(bins))
    axes.bar(
        (shown + 0.25) * width,
        high - low,
        bottom=low,
        width=width / 2,
        align="edge",
        color=(0, 0, 0, 0.35),
        edgecolor="black",
        label="accuracy if true, 95 %\n(independent voxels)",
    )
    axes.set_title(f"{axes.get_title()}\n{resampled_errors(bins).mean().item():.4f} {IF_TRUE}")


def rank_heat_map(ranks: ArrayLike, totals: ArrayLike, methods: Sequence[str], columns: Sequence[str]) -> Figure:
    """Draw the rank of each method in each column, next to the method's total, with the best method on top.

    Args:
        ranks: Ranks `(methods, columns)`; 1 is best, NaN leaves a cell empty.
        totals: One number per method, such as the sum or the mean of its ranks; the smallest is best.
        methods: Names of the methods.
        columns: Names of the columns, and one more for the totals.

    Returns:
        A figure without a window.

    Examples:
        >>> from calib_components.figures import rank_heat_map
        >>> figure = rank_heat_map([[1, 2], [2, 1.5]], [3, 3.5], ["NACL", "SVLS"], ["DSC", "ECE", "sum"])
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
        axes.set_xticks(range(len(names)), [_literal(name, NAME) for name in names])
        axes.xaxis.tick_top()
        axes.set_yticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    left.set_yticks(range(len(methods)), [_literal(methods[i], NAME) for i in order])
    return figure


def logit_bars(magnitudes: Mapping[str, ArrayLike], class_names: Sequence[str]) -> Figure:
    """Draw the mean magnitude of the logits: one panel per method, with one group of bars per ground-truth class.

    Args:
        magnitudes: Table `(N, N)` of each method, by ground-truth class and channel, as
            `calib_components.metrics.LogitMagnitudeMetric.magnitudes`.
        class_names: Names of the N classes.

    Returns:
        A figure without a window.

    Examples:
        >>> from calib_components.figures import logit_bars
        >>> figure = logit_bars({"NACL": [[2.1, 0.3], [0.4, 1.9]]}, ["background", "heart"])
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
        axes.set_title(_literal(name, NAME), fontsize="medium")
        axes.set_xticks(range(num_classes), [_literal(name, TICK, 4) for name in class_names], fontsize="x-small")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(tables) :]:
        axes.remove()
    figure.supylabel("mean |logit|", fontsize="medium")
    figure.supxlabel("ground truth", fontsize="medium")
    handles = [Patch(color=_class_color(k)) for k in range(num_classes)]
    figure.legend(
        handles,
        [_literal(name, NAME) for name in class_names],
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
    """Draw one slice three times: with contours of the ground truth, contours of the prediction, and the uncertainty.

    Args:
        image: Grey values `(H, W)`; the first axis points right, the second down.
        label: Class index of the ground truth, `(H, W)`; 0 is background.
        prediction: Predicted class index, `(H, W)`.
        uncertainty: Uncertainty from 0 (certain) to 1, `(H, W)`.
        class_names: Names of the classes, background first. The legend shows those that are in the slice.
        title: Title of the figure, of one or more lines.

    Returns:
        A figure without a window.

    Raises:
        ValueError: A class in the slice has no name.

    Examples:
        >>> import numpy as np
        >>> from calib_components.figures import uncertainty_overlay
        >>> label = np.zeros((32, 32), int)
        >>> label[8:16, 8:16] = 1
        >>> image = np.random.default_rng(0).normal(label)
        >>> figure = uncertainty_overlay(image, label, label, label / 2, ["background", "heart"])
    """
    image, label, prediction, uncertainty = (np.asarray(x).T for x in (image, label, prediction, uncertainty))
    drawn = np.union1d(label[label > 0], prediction[prediction > 0])
    if drawn.size and drawn[-1] >= len(class_names):
        raise ValueError(f"class_names: expected a name for each class, got {len(class_names)} for class {drawn[-1]}")
    names = [_literal(class_names[k], NAME) for k in drawn]
    columns = max(1, min(4, TITLE // (max(map(len, names), default=0) + 6)))
    lines = title.count("\n") + 1 + math.ceil(len(names) / columns)
    figure = Figure(figsize=(6.4, 1.95 * image.shape[0] / image.shape[1] + 0.45 + 0.2 * lines), dpi=150)
    figure.set_layout_engine("constrained")
    figure.suptitle("\n".join(_literal(line, TITLE) for line in title.split("\n")), fontsize="medium")
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
    handles = [Patch(color=_class_color(k), label=name) for k, name in zip(drawn, names, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize="small")
    return figure


def _literal(text: str, width: int, lines: int = 1) -> str:
    """A user's text as matplotlib draws it literally, in so many lines of that width; the rest is cut off."""
    wrapped = textwrap.wrap(printable(text), width)
    if len(wrapped) > lines:
        wrapped[lines - 1 :] = [f"{' '.join(wrapped[lines - 1 :])[: width - 3]}..."]
    literal = "\n".join(wrapped).replace("$", r"\$")  # no mathematics
    return f" {literal}" if literal.startswith("_") else literal  # which would keep a name out of a legend


def _class_color(k: int) -> str:
    """Grey for the background, then a palette suited to colour-blind readers (Okabe and Ito)."""
    return ("#999999", "#e69f00", "#56b4e9", "#cc79a7", "#009e73", "#f0e442", "#d55e00", "#0072b2")[k % 8]
