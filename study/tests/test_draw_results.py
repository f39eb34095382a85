"""What the figure of means draws, by the artists in it."""

from __future__ import annotations

from matplotlib.figure import Figure

from study.tables.draw_results import ROWS, draw_panel
from study.tables.fill_tables import mean


def test_panel_has_a_line_and_a_mark_for_each_row() -> None:
    axes = Figure().subplots()
    draw_panel(axes, "nll_all", "lge")
    lines, marks = axes.lines[::2], axes.lines[1::2]
    assert len(lines) == len(marks) == len(ROWS)
    value, low, high, *_ = mean("nacl+T", "lge", "nll_all")
    row = ROWS.index("nacl+T")
    assert [*lines[row].get_xdata()] == [low, high]
    assert (*marks[row].get_xdata(), *marks[row].get_ydata()) == (value, row)
    assert [mark.get_markerfacecolor() == "white" for mark in marks[:2]] == [False, True]
