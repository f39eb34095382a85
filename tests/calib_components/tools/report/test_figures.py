"""What the figures of reports draw, by the artists in them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from calib_components.tools.report.figures import (
    expected_dsc_scatter,
    logit_bars,
    mean_intervals,
    rank_heat_map,
    rank_lines,
    risk_coverage_curves,
    threshold_curves,
    volume_agreement,
)
from tests.calib_components.figures.test_figures import HOSTILE, assert_legible


def volumes(scale: float = 1.0) -> list[np.ndarray]:
    """Expected, true, low and high of three cases; the second is above its range."""
    return [scale * np.array(values) for values in ([12.0, 20, 30], [10.0, 26, 30], [8.0, 15, 29], [15.0, 25, 31])]


def curves(*dsc: float) -> pd.DataFrame:
    values, index = np.array(dsc), np.linspace(0.25, 0.75, len(dsc))
    table = {"sensitivity": values, "specificity": 1 - values, "ppv": 0.5 * values, "dsc": values}
    return pd.DataFrame(table, index=index)


def test_heat_map_has_the_best_method_on_top() -> None:
    figure = rank_heat_map([[2, 2.5], [1, 1], [3, np.nan]], [4.5, 2, 3], ["a", "b", "c"], ["DSC", "ECE", "sum"])
    ranks, totals = figure.axes
    assert [label.get_text() for label in ranks.get_yticklabels()] == ["b", "c", "a"]
    assert [text.get_text() for text in ranks.texts] == ["1.0", "1.0", "3.0", "2.0", "2.5"]
    assert [text.get_text() for text in totals.texts] == ["2.0", "3.0", "4.5"]


def test_rank_lines_have_a_line_for_each_method_and_its_name_at_both_ends() -> None:
    panels = {"without": [[1, 2.5], [2, 2.5], [3, 1]], "with": [[3, 1], [1, 2], [2, 3]]}
    first, last = rank_lines(panels, ["A", "$B", "C"], ["ECE", "NLL"]).axes
    assert [line.get_ydata().tolist() for line in first.lines] == panels["without"]
    assert first.get_ylim()[0] > first.get_ylim()[1]  # rank 1 on top
    for axes, column in ((first, 0), (last, 1)):
        names = {text.xy: text.get_text() for text in axes.texts if hasattr(text, "xy")}
        ranks = panels[axes.get_title()]
        assert names == {(column, rank[column]): name for name, rank in zip(("A", r"\$B", "C"), ranks, strict=True)}


def test_mean_intervals_have_a_line_and_a_mark_for_each_row() -> None:
    means = [[2, 1, 4], [7, 6, 9], [np.nan, np.nan, np.nan]]
    figure = mean_intervals(
        {f"panel {i}": np.array(means) + i for i in range(4)}, ["A", "$B", "C"], [False, True, False]
    )
    first, second, *_, last = figure.axes
    assert [text.get_text() for text in first.get_yticklabels()] == ["A", r"\$B", "C"]
    assert [text.get_text() for text in second.get_yticklabels()] == ["", "", ""]
    lines, marks = last.lines[::2], last.lines[1::2]
    assert [list(line.get_xdata()) for line in lines[:2]] == [[4, 7], [9, 12]]
    assert [(float(mark.get_xdata()[0]), mark.get_ydata()[0]) for mark in marks[:2]] == [(5, 0), (10, 1)]
    assert [mark.get_markerfacecolor() == "white" for mark in marks] == [False, True, False]


def test_logit_bars_are_the_table() -> None:
    figure = logit_bars({f"method {i}": np.arange(9).reshape(3, 3) for i in range(5)}, ["background", "a", "b"])
    heights = [bar.get_height() for bar in sorted(figure.axes[4].patches, key=lambda bar: bar.get_x())]
    assert heights == list(range(9))  # by ground truth class, then logit


@pytest.mark.parametrize(
    ("given", "title"),
    [
        (volumes(), "bias -1.3 ml\nin range: 2 of 3"),  # (2 - 6 + 0) / 3
        ([volumes()[0], [np.nan, 26, 30], *volumes()[2:]], "bias -3.0 ml\nin range: 1 of 2"),
        ([[12.0, 5], [10.0, 0], [8.0, 0], [15.0, 9]], "bias +3.5 ml\nin range: 1 of 1"),  # the second has none
    ],
)
def test_volumes_count_cases_in_range_and_leave_out_undefined_ones(given: list, title: str) -> None:
    (axes,) = volume_agreement({"tumour": given}, "ml").axes
    assert axes.get_title() == f"tumour\n{title}"
    _, inside, outside, absent = axes.collections
    assert sum(len(marks.get_offsets()) for marks in (inside, outside, absent)) == np.isfinite(given).all(0).sum()


def test_thresholds_mark_the_chosen_one_alone() -> None:
    figure = threshold_curves({"tumour": curves(0.5, 0.75, 0.25)}, {"tumour": 0.25})
    sensitivity, specificity, ppv, dsc, line, chosen = figure.axes[0].lines
    assert specificity.get_ydata().tolist() == [0.5, 0.25, 0.75]
    assert ppv.get_ydata().tolist() == [0.25, 0.375, 0.125]
    assert list(line.get_xdata()) == [0.25, 0.25]
    assert (list(chosen.get_xdata()), list(chosen.get_ydata())) == ([0.25], [0.5])
    assert sensitivity.get_xdata().tolist() == dsc.get_xdata().tolist() == [0.25, 0.5, 0.75]
    assert len(threshold_curves({"a": curves(0.5, 0.75, 0.25)}, {}).axes[0].lines) == 4


def test_risk_in_per_cent_and_expected_dsc() -> None:
    figure = risk_coverage_curves({"NACL": ([0, 0.5, 0.99, 1], [0, 0.01, 0.02, 0.04])})
    assert figure.axes[0].lines[0].get_ydata().tolist() == [0, 1, 2, 4]
    transform = figure.axes[0].xaxis.get_transform()
    np.testing.assert_allclose(transform.inverted().transform(transform.transform([0, 0.3, 0.999])), [0, 0.3, 0.999])
    (axes,) = expected_dsc_scatter([0.9, 0.7, np.nan, 0.5], [0.8, 0.65, 0.1, np.nan]).axes
    assert axes.collections[0].get_offsets().tolist() == [[0.9, 0.8], [0.7, 0.65]]
    assert axes.get_xlim() == axes.get_ylim() == (0.6, 1)


def test_names_are_drawn_literally_and_nothing_overlaps() -> None:
    square = np.ones((len(HOSTILE), len(HOSTILE)))
    assert_legible(
        logit_bars(dict.fromkeys(HOSTILE, square), HOSTILE),
        rank_heat_map([[1, 2]], [3], [HOSTILE[0]], [*HOSTILE[1:3], "sum"]),
        volume_agreement({name: volumes(10.0**i) for i, name in enumerate(HOSTILE)}, "voxels"),
        threshold_curves(dict.fromkeys(HOSTILE, curves(0.5, 0.75, 0.25)), dict.fromkeys(HOSTILE, 0.5)),
        risk_coverage_curves(dict.fromkeys(HOSTILE, ([0.1, 0.9, 1], np.linspace(0, 0.1, 3)))),
    )
