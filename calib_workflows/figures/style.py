"""What figures share: names and colours."""

from __future__ import annotations

import textwrap

from calib_components.errors import printable
from calib_workflows.pages.slices import COLORS

# Characters that fit into a line: of a figure's title, of a panel's, in a legend.
TITLE, PANEL_TITLE, NAME = 75, 26, 40
PALETTE = ("999999", *COLORS)


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
    return f"#{PALETTE[k % len(PALETTE)]}"
