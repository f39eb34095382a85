"""Reliability diagrams."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from calib_components.metrics import CalibrationBins
from calib_workflows.figures.style import PANEL_TITLE, literal

ABREAST = 5  # panels in a row
SMALLEST_SHARE = 1e-5  # of the voxels: bins with fewer are not drawn


def reliability_diagram(
    bins: CalibrationBins | Mapping[str, CalibrationBins],
    class_names: Sequence[str] | None = None,
    if_true: CalibrationBins | Mapping[str, CalibrationBins] | None = None,
) -> Figure:
    """Draw accuracy over confidence, and below it the fraction of voxels in each bin, with all
    cases pooled.

    Blue plus yellow reaches the mean accuracy of a bin, blue plus red its mean confidence. Bins
    with less than 0.001 % of the voxels are not drawn, because their accuracy is that of a few
    voxels. Top-label bins give one panel, classwise bins one panel per class. The title shows the
    ECE of all voxels in the panel.

    In a region chosen by the ground truth, the accuracy of true probabilities is not their mean
    confidence. Black marks show that accuracy, and the title the ECE to expect, if `if_true` has
    them. In a region chosen by the prediction, only chance is left.

    Args:
        bins: Top-label bins `(B, bins)` or classwise bins `(B, N, bins)`, such as the `bins` of a
            metric; or top-label bins by the title of their panel.
        class_names: Names of the N classes, for classwise bins only; None uses their indices.
        if_true: Bins if the probabilities were true, in the form of `bins`, such as the
            `bins_if_true` of a metric. By title, those of some panels are enough.

    Examples:
        >>> import torch
        >>> from calib_workflows.figures import reliability_diagram
        >>> from calib_components.metrics import ECEMetric
        >>> metric = ECEMetric(region="foreground")
        >>> _ = metric(torch.rand(1, 4, 32, 32, 8).softmax(1), torch.randint(4, (1, 1, 32, 32, 8)))
        >>> figure = reliability_diagram(metric.bins, if_true=metric.bins_if_true)
        >>> figure.savefig("reliability.png")  # doctest: +SKIP
    """
    panels = _bins_of_panels(bins, class_names)
    expected = {} if if_true is None else _bins_of_panels(if_true, class_names)
    is_classwise = isinstance(bins, CalibrationBins) and bins.count.ndim == 3
    columns, rows = min(len(panels), ABREAST), math.ceil(len(panels) / ABREAST)
    size = (3 * columns + 0.6, 4.2 * rows + 0.4)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    legend: dict[str, Artist] = {}
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[3, 1] * rows)
    for i, (title, panel) in enumerate(panels.items()):
        row, column = divmod(i, columns)
        upper, lower = (figure.add_subplot(grid[2 * row + part, column]) for part in (0, 1))
        _draw_panel(upper, lower, panel, literal(title, PANEL_TITLE, 3), expected.get(title))
        if column == 0:
            upper.set_ylabel("Frequency of the class" if is_classwise else "Accuracy")
            lower.set_ylabel("Voxels")
        legend |= dict(zip(*reversed(upper.get_legend_handles_labels()), strict=True))
    figure.legend(
        [*legend.values()],
        [*legend],
        loc="outside lower center",
        ncols=min(3, 2 * columns),
        frameon=False,
        fontsize="small",
    )
    return figure


def _bins_of_panels(
    bins: CalibrationBins | Mapping[str, CalibrationBins], class_names: Sequence[str] | None
) -> dict[str, CalibrationBins]:
    """Return bins `(1, bins)` of each panel by its title."""
    if isinstance(bins, Mapping):
        return {title: panel.pooled() for title, panel in bins.items()}
    if bins.count.ndim == 2:
        return {"Predicted class": bins.pooled()}
    panels = bins.pooled().per_class()
    titles = class_names or [f"Class {k}" for k in range(len(panels))]
    return dict(zip(titles, panels, strict=True))


def _draw_panel(
    upper: Axes,
    lower: Axes,
    bins: CalibrationBins,
    title: str,
    if_true: CalibrationBins | None,
) -> None:
    total = bins.count.sum().clamp(min=1)
    share = (bins.count[0].double() / total).cpu().numpy()
    shown, width = np.flatnonzero(share > SMALLEST_SHARE), 1 / len(share)

    def of_shown(values: torch.Tensor) -> NDArray[np.float64]:
        return np.asarray(values[0].cpu(), float)[shown]

    confidence, accuracy = of_shown(bins.confidence), of_shown(bins.accuracy)
    over, under = np.maximum(confidence - accuracy, 0), np.maximum(accuracy - confidence, 0)
    bar: dict[str, Any] = {"width": width, "align": "edge", "edgecolor": "white", "linewidth": 0.5}
    left = shown * width
    upper.bar(left, accuracy, color="tab:blue", label="accuracy", **bar)
    upper.bar(left, over, bottom=accuracy, color="lightcoral", label="gap, overconfident", **bar)
    upper.bar(left, under, bottom=confidence, color="gold", label="gap, underconfident", **bar)
    upper.plot([0, 1], [0, 1], color="black", linewidth=1, ls="--", label="perfect calibration")
    title += f"\npooled ECE {bins.expected_error().item():.4f}"
    if if_true is not None:
        ends = (shown + 0.15) * width, (shown + 0.85) * width
        upper.hlines(of_shown(if_true.accuracy), *ends, color="black", label="accuracy if true")
        title += f"\n{if_true.expected_error().item():.4f} if probabilities were true"
    upper.set(xlim=(0, 1), ylim=(0, 1))
    upper.set_title(title, fontsize="medium")  # those of neighbours do not touch
    upper.tick_params(labelbottom=False)
    lower.bar(left, share[shown], color="tab:gray", **bar)
    lower.set(xlim=(0, 1), yscale="log", ylim=(SMALLEST_SHARE, 1), xlabel="Confidence")
    lower.set_yticks([1e-4, 1e-2, 1], labels=["0.01 %", "1 %", "100 %"])
