"""One slice of a case, with contours and uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from calib_components.figures.style import NAME, TITLE, class_color, literal

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
    image = np.zeros(label.shape) if image is None else np.asarray(image, float).T
    finite = np.isfinite(image)
    image = np.where(finite, image, image[finite].min() if finite.any() else 0)
    drawn = np.union1d(label[label > 0], prediction[prediction > 0])
    if drawn.size and drawn[-1] >= len(class_names):
        raise ValueError(
            f"class_names has {len(class_names)} names, but the slice has class {drawn[-1]}."
        )
    names = [literal(class_names[k], NAME) for k in drawn]
    columns = max(1, min(4, TITLE // (max(map(len, names), default=0) + 6)))
    lines = title.count("\n") + 1 + math.ceil(len(names) / columns)
    titles = ["ground truth", "prediction", "uncertainty"][: 2 if uncertainty is None else 3]
    ratio = min(image.shape[0] / image.shape[1], TALLEST)
    figure = Figure(
        figsize=(6.4, 5.85 / len(titles) * ratio + 0.45 + 0.2 * lines),
        dpi=150,
        layout="constrained",
    )
    figure.suptitle(
        "\n".join(literal(line, TITLE) for line in title.split("\n")), fontsize="medium"
    )
    # Nothing to see is grey, not black
    low, high = np.percentile(image, [0.5, 99.5]) if image.any() else (-1, 1)
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
        overlay = panels[2].imshow(
            uncertainty, cmap="inferno", vmin=0, vmax=1, alpha=alpha, interpolation="nearest"
        )
        figure.colorbar(overlay, ax=panels[2], fraction=0.046, pad=0.02, ticks=[0, 0.5, 1])
    handles = [
        Patch(color=class_color(k), label=name) for k, name in zip(drawn, names, strict=True)
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize="small"
    )
    return figure
