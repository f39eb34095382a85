"""Names and colors, as all figures draw them."""

from __future__ import annotations

import textwrap

from calib_components.errors import printable

__all__ = ["NAME", "TICK", "TITLE", "class_color", "literal"]

# Characters that fit into a line: of a figure's title, in a legend, below a group of bars.
TITLE, NAME, TICK = 75, 40, 10


def literal(text: str, width: int, lines: int = 1) -> str:
    """A user's text as matplotlib draws it literally, in so many lines of that width; the rest is cut off."""
    wrapped = textwrap.wrap(printable(text), width)
    if len(wrapped) > lines:
        wrapped[lines - 1 :] = [f"{' '.join(wrapped[lines - 1 :])[: width - 3]}..."]
    literal = "\n".join(wrapped).replace("$", r"\$")  # no mathematics
    return f" {literal}" if literal.startswith("_") else literal  # which would keep a name out of a legend


def class_color(k: int) -> str:
    """Grey for the background, then a palette suited to colour-blind readers (Okabe and Ito)."""
    return ("#999999", "#e69f00", "#56b4e9", "#cc79a7", "#009e73", "#f0e442", "#d55e00", "#0072b2")[k % 8]
