"""Names in figures."""

from __future__ import annotations

import textwrap

from calib_components.errors import printable

PANEL_TITLE, NAME = 26, 40  # characters that fit into a line: of a panel's title, in a legend


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
