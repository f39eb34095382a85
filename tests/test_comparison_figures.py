from __future__ import annotations

import numpy as np
import pytest

from calib_components.figures import logit_bars, rank_heat_map, uncertainty_overlay


def test_heat_map_has_the_best_method_on_top() -> None:
    figure = rank_heat_map([[2, 2.5], [1, 1], [3, np.nan]], [4.5, 2, 3], ["a", "b", "c"], ["DSC", "ECE", "sum"])
    ranks, totals = figure.axes
    assert [label.get_text() for label in ranks.get_yticklabels()] == ["b", "c", "a"]
    assert [label.get_text() for axes in figure.axes for label in axes.get_xticklabels()] == ["DSC", "ECE", "sum"]
    assert [text.get_text() for text in ranks.texts] == ["1.0", "1.0", "3.0", "2.0", "2.5"]
    assert [text.get_text() for text in totals.texts] == ["2.0", "3.0", "4.5"]


def test_logit_bars_are_the_table() -> None:
    table = np.arange(9).reshape(3, 3)
    figure = logit_bars({f"method {i}": table for i in range(5)}, ["background", "a", "b"])
    assert [axes.get_title() for axes in figure.axes] == [f"method {i}" for i in range(5)]
    bars = sorted(figure.axes[4].patches, key=lambda bar: bar.get_x())
    assert [bar.get_height() for bar in bars] == list(range(9))  # by ground truth class, then logit


@pytest.mark.parametrize("methods", range(1, 8))
@pytest.mark.parametrize("names", [["background", "right ventricle", "myocardium", "left ventricle"], ["a", "b"]])
def test_legend_of_logit_bars_lies_within_the_figure(methods: int, names: list[str]) -> None:
    figure = logit_bars({f"method {i}": np.ones((len(names), len(names))) for i in range(methods)}, names)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    assert all(box.y0 >= axes.title.get_window_extent().y1 for axes in figure.axes)


@pytest.mark.parametrize("shape", [(20, 30), (31, 20)])
def test_overlay_has_three_panels_of_the_slice(shape: tuple[int, int]) -> None:
    label = np.zeros(shape, np.uint8)
    prediction = label.copy()
    prediction[5:9, 6:12] = 2
    figure = uncertainty_overlay(np.random.default_rng(0).normal(size=shape), label, prediction, label / 1.0, "a case")
    panels = figure.axes[:3]
    assert [axes.get_title() for axes in panels] == ["ground truth", "prediction", "uncertainty"]
    assert all(axes.images[0].get_array().shape == shape[::-1] for axes in panels)
    assert [len(axes.collections) for axes in panels] == [0, 1, 0]  # contours: nothing in the ground truth
    figure.draw_without_rendering()
