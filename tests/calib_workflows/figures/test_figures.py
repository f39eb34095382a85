"""What figures draw, by the artists in them."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from calib_components.metrics import CalibrationBins
from calib_workflows.figures import reliability_diagram

# Class 0: 10 voxels at 0.6, 7 of them correct; 30 at 0.9, 15 of them correct. Class 1: 10 voxels at
# 0.25, none correct.
BINS = CalibrationBins(
    count=torch.tensor([[[0, 0, 10, 30], [0, 10, 0, 0]]]),
    confidence_sum=torch.tensor([[[0, 0, 6.0, 27], [0, 2.5, 0, 0]]], dtype=torch.float64),
    num_correct=torch.tensor([[[0, 0, 7.0, 15], [0, 0, 0, 0]]], dtype=torch.float64),
)
TOP_LABEL = BINS.per_class()[0]
IF_TRUE = CalibrationBins(  # accuracy 0.25 at confidence 0.6, and 0.75 at 0.9
    count=torch.tensor([[0, 0, 4.0, 8]], dtype=torch.float64),
    confidence_sum=torch.tensor([[0, 0, 2.4, 7.2]], dtype=torch.float64),
    num_correct=torch.tensor([[0, 0, 1.0, 6]], dtype=torch.float64),
)
HOSTILE = ["$x_1$", "_first", "a^b\\alpha", "line\nbreak", "long " * 50, r"\$", "%d{}"]
NAMES = ["background", "heart"]


def bars(axes: Axes) -> list[tuple[float, ...]]:
    """Left edge, bottom and height of every visible bar."""
    found = [(bar.get_x(), bar.get_y(), bar.get_height()) for bar in axes.patches]
    return [tuple(round(value, 9) for value in bar) for bar in found if bar[2] > 1e-9]


def assert_legible(*figures: Figure) -> None:
    """Assert that names are drawn literally and nothing overlaps a legend."""
    for figure in figures:
        figure.draw_without_rendering()
        assert not any(text._preprocess_math(text.get_text())[1] for text in figure.findobj(Text))
        boxes = [box.get_window_extent() for box in figure.legends]
        assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width for box in boxes)
        assert not any(
            box.overlaps(axes.get_window_extent()) for box in boxes for axes in figure.axes
        )


def test_reliability_of_each_class() -> None:
    first, share_of_first, second, share_of_second = reliability_diagram(BINS, NAMES).axes
    assert first.get_title() == "background\npooled ECE 0.3250"  # (10 x 0.1 + 30 x 0.4) / 40
    assert second.get_title() == "heart\npooled ECE 0.2500"
    accuracies, over, under = [(0.5, 0, 0.7), (0.75, 0, 0.5)], [(0.75, 0.5, 0.4)], [(0.5, 0.6, 0.1)]
    assert bars(first) == accuracies + over + under
    assert bars(second) == [(0.25, 0, 0.25)]  # all of it a gap
    assert bars(share_of_first) == [(0.5, 0, 0.25), (0.75, 0, 0.75)]
    assert bars(share_of_second) == [(0.25, 0, 1)]


def test_bins_with_few_voxels_are_not_drawn_but_counted() -> None:
    count = torch.tensor([[1, 0, 999_999]])
    upper, lower = reliability_diagram(CalibrationBins(count, count * 0.25, count * 1.0)).axes
    assert bars(upper) == [(0.666666667, 0, 1.0), (0.666666667, 0.25, 0.75)]
    assert bars(lower) == [(0.666666667, 0, 0.999999)]
    assert upper.get_title() == "Predicted class\npooled ECE 0.7500"


def test_accuracy_if_true_is_marked() -> None:
    upper = reliability_diagram(TOP_LABEL, if_true=IF_TRUE).axes[0]
    marks = [
        segment.round(9).tolist()
        for lines in upper.collections
        for segment in lines.get_segments()
        if len(segment)
    ]
    assert marks == [[[0.5375, 0.25], [0.7125, 0.25]], [[0.7875, 0.75], [0.9625, 0.75]]]
    assert upper.get_title().endswith("0.2167 if probabilities were true")  # (1.4 + 1.2) / 12
    figure = reliability_diagram(
        {"all": TOP_LABEL, "foreground": TOP_LABEL}, if_true={"foreground": IF_TRUE}
    )
    assert [len(axes.collections) for axes in figure.axes[::2]] == [0, 1]
    empty = CalibrationBins(*(0 * field for field in vars(TOP_LABEL).values()))
    assert bars(reliability_diagram(empty).axes[0]) == []


def test_names_are_drawn_literally_and_nothing_overlaps() -> None:
    assert_legible(
        reliability_diagram(TOP_LABEL),
        reliability_diagram(dict.fromkeys(HOSTILE, TOP_LABEL)),
    )
