"""What the figure of means draws, by the artists in it."""

from __future__ import annotations

import numpy as np

from study.tables.draw_results import mean_intervals
from tests.calib_components.figures.test_figures import HOSTILE, assert_legible


def test_mean_intervals_have_a_line_and_a_mark_for_each_row() -> None:
    means = [[2, 1, 4], [7, 6, 9], [np.nan, np.nan, np.nan]]
    figure = mean_intervals(
        {f"panel {i}": np.array(means) + i for i in range(4)},
        ["A", "$B", "C"],
        [False, True, False],
    )
    first, second, *_, last = figure.axes
    assert [text.get_text() for text in first.get_yticklabels()] == ["A", r"\$B", "C"]
    assert [text.get_text() for text in second.get_yticklabels()] == ["", "", ""]
    lines, marks = last.lines[::2], last.lines[1::2]
    assert [list(line.get_xdata()) for line in lines[:2]] == [[4, 7], [9, 12]]
    assert [(float(mark.get_xdata()[0]), mark.get_ydata()[0]) for mark in marks[:2]] == [
        (5, 0),
        (10, 1),
    ]
    assert [mark.get_markerfacecolor() == "white" for mark in marks] == [False, True, False]
    assert_legible(
        mean_intervals({"$a_b": np.ones((len(HOSTILE), 3))}, HOSTILE, [False] * len(HOSTILE))
    )
