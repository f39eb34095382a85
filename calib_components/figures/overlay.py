"""One slice of a case, with contours and uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike

from calib_components.figures.style import NAME, TITLE, class_color, literal
from calib_components.quality.page import GREY_RANGE

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
        >>> from calib_components.figures import uncertainty_overlay
        >>> label = np.zeros((32, 32), int)
        >>> label[8:16, 8:16] = 1
        >>> image = np.random.default_rng(0).normal(label)
        >>> figure = uncertainty_overlay(image, label, label, label / 2, ["background", "heart"])
    """
    label, prediction = (np.asarray(each).T.astype(np.int64) for each in (label, prediction))
    grey = np.zeros(label.shape) if image is None else _finite(np.asarray(image, float).T)
    drawn = np.union1d(label[label > 0], prediction[prediction > 0])
    if drawn.size and drawn[-1] >= len(class_names):
        raise ValueError(
            f"class_names has {len(class_names)} names, but the slice has class {drawn[-1]}."
        )
    names = {k: literal(class_names[k], NAME) for k in drawn}
    longest = max(map(len, names.values()), default=0)
    legend_columns = max(1, min(4, TITLE // (longest + 6)))
    lines = title.count("\n") + 1 + math.ceil(len(names) / legend_columns)
    titles = ["ground truth", "prediction"]
    if uncertainty is not None:
        titles.append("uncertainty")
    ratio = min(grey.shape[0] / grey.shape[1], TALLEST)
    figure = Figure(
        figsize=(6.4, 5.85 / len(titles) * ratio + 0.45 + 0.2 * lines),
        dpi=150,
        layout="constrained",
    )
    text = "\n".join(literal(line, TITLE) for line in title.split("\n"))
    figure.suptitle(text, fontsize="medium")
    panels = figure.subplots(1, len(titles))
    for axes, name in zip(panels, titles, strict=True):
        _draw_grey(axes, grey, name)
    _draw_contours(panels[0], label)
    _draw_contours(panels[1], prediction)
    if uncertainty is not None:
        _draw_uncertainty(figure, panels[2], np.asarray(uncertainty).T)
    figure.legend(
        handles=[Patch(color=class_color(k), label=name) for k, name in names.items()],
        loc="outside lower center",
        ncols=legend_columns,
        frameon=False,
        fontsize="small",
    )
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
    drawn = {literal(name, NAME): np.asarray(mask).T > 0 for name, mask in masks.items()}
    shape = next(iter(drawn.values())).shape
    grey = np.zeros(shape) if image is None else _finite(np.asarray(image, float).T)
    titles = ["raters"] if probability is None else ["raters", "probability"]
    ratio = min(shape[0] / shape[1], TALLEST)
    size = (3.2 * len(titles), 3 * ratio + 0.8 + 0.1 * len(drawn))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    figure.suptitle(literal(title, TITLE), fontsize="medium")
    panels = figure.subplots(1, len(titles), squeeze=False)[0]
    _draw_grey(panels[0], grey, titles[0])
    if probability is not None:
        values = np.asarray(probability).T
        shown = panels[1].imshow(values, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        panels[1].set_title(titles[1], fontsize="small")
        panels[1].set_axis_off()
        figure.colorbar(shown, ax=panels[1], fraction=0.046, pad=0.02, ticks=[0, 0.5, 1])
    colors = {name: class_color(number) for number, name in enumerate(drawn, start=1)}
    for axes in panels:
        for name, mask in drawn.items():
            if min(shape) > 1 and mask.any():
                axes.contour(mask, levels=[0.5], colors=[colors[name]], linewidths=1.2)
    figure.legend(
        handles=[Patch(color=color, label=name) for name, color in colors.items()],
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize="small",
    )
    return figure


def _finite(image: np.ndarray) -> np.ndarray:
    """Return an image in which values that are not finite are the smallest that is."""
    finite = np.isfinite(image)
    return np.where(finite, image, image[finite].min() if finite.any() else 0)


def _draw_grey(axes: Axes, grey: np.ndarray, title: str) -> None:
    # Nothing to see is grey, not black
    low, high = np.percentile(grey, GREY_RANGE) if grey.any() else (-1, 1)
    axes.imshow(grey, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    axes.set_title(title, fontsize="small")
    axes.set_axis_off()


def _draw_contours(axes: Axes, classes: np.ndarray) -> None:
    if min(classes.shape) < 2:
        return
    for k in np.unique(classes[classes > 0]):
        contour = axes.contour(classes == k, levels=[0.5], colors=[class_color(k)], linewidths=1.8)
        contour.set(path_effects=[withStroke(linewidth=3.2, foreground="black")])


def _draw_uncertainty(figure: Figure, axes: Axes, uncertainty: np.ndarray) -> None:
    overlay = axes.imshow(
        uncertainty,
        cmap="inferno",
        vmin=0,
        vmax=1,
        alpha=np.clip(4 * uncertainty, 0, 0.9),
        interpolation="nearest",
    )
    figure.colorbar(overlay, ax=axes, fraction=0.046, pad=0.02, ticks=[0, 0.5, 1])
