"""One slice of a case, with contours and uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike

from calib_workflows.figures.style import NAME, TITLE, class_color, literal
from calib_workflows.pages.slices import GREY_RANGE

# Heights of a panel by its width: a slice of 1 x 512 pixels would be a picture of hundreds of
# megabytes
TALLEST = 8


def uncertainty_overlay(
    image: ArrayLike | None,
    label: ArrayLike,
    prediction: ArrayLike,
    uncertainty: ArrayLike | None,
    class_names: Sequence[str],
    title: str = "",
) -> Figure:
    """Draw one slice three times: with contours of the ground truth, contours of the prediction,
    and the uncertainty.

    A slice of less than 2 x 2 pixels has no contours.

    Args:
        image: Grey values `(H, W)`; the first axis points right, the second down. None draws on
            plain grey. Values that are not finite are drawn as the smallest that is.
        label: Class index of the ground truth, `(H, W)`; 0 is background.
        prediction: Predicted class index, `(H, W)`.
        uncertainty: Uncertainty from 0 (certain) to 1, `(H, W)`; None leaves out its panel.
        class_names: Names of the classes, background first. The legend shows those that are in the
            slice.
        title: Title of the figure, of one or more lines.

    Raises:
        ValueError: A class in the slice has no name. Voxels to leave out need a class index and a
            name, such as those of the background.

    Examples:
        >>> import numpy as np
        >>> from calib_workflows.figures import uncertainty_overlay
        >>> label = np.zeros((32, 32), int)
        >>> label[8:16, 8:16] = 1
        >>> image = np.random.default_rng(0).normal(label)
        >>> figure = uncertainty_overlay(image, label, label, label / 2, ["background", "heart"])
    """
    label, prediction = (np.asarray(each).T.astype(np.int64) for each in (label, prediction))
    drawn = np.union1d(label[label > 0], prediction[prediction > 0])
    if drawn.size and drawn[-1] >= len(class_names):
        raise ValueError(
            f"class_names has {len(class_names)} names, but the slice has class {drawn[-1]}."
        )
    titles = ["ground truth", "prediction"]
    if uncertainty is not None:
        titles.append("uncertainty")
    names = {k: class_names[k] for k in drawn}
    figure, panels = _make_panels(titles, label.shape, title, names)
    for axes in panels:
        _draw_grey(axes, image, label.shape)
    for axes, classes in zip(panels, (label, prediction), strict=False):
        for k in np.unique(classes[classes > 0]):
            _draw_contour(axes, classes == k, k, 1.8, halo=1.4)
    if uncertainty is not None:
        opacity = np.clip(4 * np.asarray(uncertainty).T, 0, 0.9)
        _draw_shares(figure, panels[2], uncertainty, cmap="inferno", alpha=opacity)
    return figure


def raters_overlay(
    image: ArrayLike | None,
    masks: Mapping[str, ArrayLike],
    probability: ArrayLike | None,
    title: str = "",
) -> Figure:
    """Draw one slice with the contours of several raters: over the image, and over the probability
    that the network gives the structures.

    Args:
        image: Grey values `(H, W)`, see `uncertainty_overlay`.
        masks: Where each rater sees a structure, `(H, W)`, by name.
        probability: `(H, W)`, from 0 to 1; None leaves out its panel.
        title: Title of the figure.
    """
    drawn = [np.asarray(mask).T > 0 for mask in masks.values()]
    titles = ["raters"] if probability is None else ["raters", "probability"]
    names = dict(enumerate(masks, start=1))
    figure, panels = _make_panels(titles, drawn[0].shape, title, names)
    _draw_grey(panels[0], image, drawn[0].shape)
    if probability is not None:
        _draw_shares(figure, panels[1], probability, cmap="gray")
    for axes in panels:
        for number, mask in enumerate(drawn, start=1):
            _draw_contour(axes, mask, number, 0.6)  # which leaves thin structures to see
    return figure


def _make_panels(
    titles: Sequence[str], shape: Sequence[int], title: str, names: Mapping[int, str]
) -> tuple[Figure, list[Axes]]:
    """Return a figure with a panel for each title, and names in the colours of their numbers."""
    shown = {number: literal(name, NAME) for number, name in names.items()}
    longest = max(map(len, shown.values()), default=0)
    legend_columns = max(1, min(4, TITLE // (longest + 6)))
    lines = title.count("\n") + 1 + math.ceil(len(shown) / legend_columns)
    ratio = min(shape[0] / shape[1], TALLEST)
    height = 5.85 / len(titles) * ratio + 0.45 + 0.2 * lines
    figure = Figure(figsize=(6.4, height), dpi=150, layout="constrained")
    text = "\n".join(literal(line, TITLE) for line in title.split("\n"))
    figure.suptitle(text, fontsize="medium")
    panels = [*figure.subplots(1, len(titles), squeeze=False)[0]]
    for axes, panel_title in zip(panels, titles, strict=True):
        axes.set_title(panel_title, fontsize="small")
        axes.set_axis_off()
    figure.legend(
        handles=[Patch(color=class_color(number), label=name) for number, name in shown.items()],
        loc="outside lower center",
        ncols=legend_columns,
        frameon=False,
        fontsize="small",
    )
    return figure, panels


def _draw_grey(axes: Axes, image: ArrayLike | None, shape: Sequence[int]) -> None:
    """Draw an image in which values that are not finite are the smallest that is."""
    grey = np.zeros(shape) if image is None else np.asarray(image, float).T
    finite = np.isfinite(grey)
    grey = np.where(finite, grey, grey[finite].min() if finite.any() else 0)
    # Nothing to see is grey, not black
    low, high = np.percentile(grey, GREY_RANGE) if grey.any() else (-1, 1)
    axes.imshow(grey, cmap="gray", vmin=low, vmax=high, interpolation="nearest")


def _draw_contour(
    axes: Axes, mask: np.ndarray, number: int, width: float, halo: float = 0.0
) -> None:
    if min(mask.shape) < 2 or not mask.any():
        return
    contour = axes.contour(mask, levels=[0.5], colors=[class_color(number)], linewidths=width)
    if halo:
        contour.set(path_effects=[withStroke(linewidth=width + halo, foreground="black")])


def _draw_shares(figure: Figure, axes: Axes, shares: ArrayLike, **style: Any) -> None:
    """Draw values from 0 to 1, `(H, W)`, with their scale."""
    values = np.asarray(shares).T
    drawn = axes.imshow(values, vmin=0, vmax=1, interpolation="nearest", **style)
    figure.colorbar(drawn, ax=axes, fraction=0.046, pad=0.02, ticks=[0, 0.5, 1])
