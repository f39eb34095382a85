"""What figures share: a grid of panels, names and colours."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calib_components.errors import printable
from calib_components.quality.page import COLORS

# Characters that fit into a line: of a figure's title, of a panel's, in a legend.
TITLE, PANEL_TITLE, NAME = 75, 26, 40
PALETTE = ("#999999", *(f"#{color}" for color in COLORS))


def panel_grid(
    number: int,
    most: int,
    width: float,
    height: float,
    extra: tuple[float, float] = (1, 0.4),
    height_ratios: Sequence[float] = (1,),
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure of panels, at most so many in a row, and the axes of each panel, from above."""
    if number == 0:
        raise ValueError("A figure needs at least one panel.")
    rows = math.ceil(number / most)
    columns = min(number, most)
    parts = len(height_ratios)
    size = (width * columns + extra[0], height * rows + extra[1])
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    grid = figure.add_gridspec(parts * rows, columns, height_ratios=[*height_ratios] * rows)
    panels: list[list[Axes]] = []
    for i in range(number):
        row, column = divmod(i, columns)
        panels.append(
            [figure.add_subplot(grid[parts * row + part, column]) for part in range(parts)]
        )
    return figure, panels


def is_first(axes: Axes) -> bool:
    """Return whether a panel is the first of its row."""
    place = axes.get_subplotspec()
    return place is not None and place.is_first_col()


def literal(text: str, width: int, lines: int = 1) -> str:
    """Return a user's text as matplotlib draws it literally, in so many lines of that width; the
    rest is cut off.
    """
    wrapped = textwrap.wrap(printable(text), width)
    if len(wrapped) > lines:
        wrapped[lines - 1 :] = [f"{' '.join(wrapped[lines - 1 :])[: width - 3]}..."]
    literal = "\n".join(wrapped).replace("$", r"\$")  # no mathematics
    # Which would keep a name out of a legend
    return f" {literal}" if literal.startswith("_") else literal


def class_color(k: int) -> str:
    """Return grey for the background, then a colour suited to colour-blind readers."""
    return PALETTE[k % len(PALETTE)]
