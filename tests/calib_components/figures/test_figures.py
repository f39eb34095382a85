from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.text import Text

from calib_components.figures import (
    logit_bars,
    mean_intervals,
    rank_heat_map,
    rank_lines,
    reliability_diagram,
    threshold_curves,
    uncertainty_overlay,
    volume_agreement,
)
from calib_components.metrics import (
    CalibrationBins,
    CalibrationMetric,
    CECEMetric,
    ECEMetric,
    consistency_bands,
    resampled_errors,
)

# Class 0: 10 voxels at 0.6, 7 of them correct; 30 at 0.9, 15 of them correct. Class 1: 10 voxels at 0.25, none correct.
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
LABELS = ["perfect calibration", "accuracy", "gap, overconfident", "gap, underconfident"]
MARK, BAND = "accuracy if true", "accuracy if true, 95 %\n(independent voxels)"


def bars(axes: Axes) -> list[tuple[float, float, float]]:
    """Left edge, bottom and height of every visible bar."""
    found = [(bar.get_x(), bar.get_y(), bar.get_height()) for bar in axes.patches]
    return [tuple(round(value, 9) for value in bar) for bar in found if bar[2] > 1e-9]  # type: ignore[misc]


def marks(axes: Axes) -> list[list[float]]:
    """Ends of every mark: left, right and height."""
    segments = [segment for lines in axes.collections for segment in lines.get_segments() if len(segment) > 0]
    return [[round(float(value), 9) for value in (left[0], right[0], left[1])] for left, right in segments]


def legend(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.figure.legends[0].get_texts()]


def test_reliability_of_each_class(tmp_path: Path) -> None:
    saved = json.dumps(BINS.to_dict())
    figure = reliability_diagram(CalibrationBins.from_dict(json.loads(saved)), ["background", "heart"])
    first, share_of_first, second, share_of_second = figure.axes
    assert first.get_title() == "background\npooled ECE 0.3250"  # (10 x 0.1 + 30 x 0.4) / 40
    assert second.get_title() == "heart\npooled ECE 0.2500"
    accuracies, over, under = [(0.5, 0, 0.7), (0.75, 0, 0.5)], [(0.75, 0.5, 0.4)], [(0.5, 0.6, 0.1)]
    assert bars(first) == accuracies + over + under
    assert bars(second) == [(0.25, 0, 0.25)]  # all of it a gap
    assert bars(share_of_first) == [(0.5, 0, 0.25), (0.75, 0, 0.75)]
    assert bars(share_of_second) == [(0.25, 0, 1)]
    assert legend(first) == LABELS
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_reliability_of_the_predicted_class() -> None:
    figure = reliability_diagram(BINS.per_class()[0])
    assert [axes.get_title() for axes in figure.axes] == ["Predicted class\npooled ECE 0.3250", ""]


@pytest.mark.parametrize(
    ("metric_type", "panels"),
    [(ECEMetric, ["Predicted class"]), (CalibrationMetric, ["Predicted class"]), (CECEMetric, ["Class 0", "Class 1"])],
)
def test_reliability_of_a_metric(metric_type: type[ECEMetric | CECEMetric], panels: list[str], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    metric = metric_type()
    metric(torch.rand(2, 2, 20, 20, generator=generator).softmax(1), torch.randint(2, (2, 1, 20, 20)))
    reliability_diagram(metric.bins).savefig(tmp_path / "reliability.png")
    saved = json.loads(json.dumps(metric.bins.to_dict()))
    reliability_diagram(CalibrationBins.from_dict(saved)).savefig(tmp_path / "saved.png")
    assert (tmp_path / "reliability.png").read_bytes() == (tmp_path / "saved.png").read_bytes()
    titles = [axes.get_title().split("\n")[0] for axes in reliability_diagram(metric.bins).axes]
    assert [title for title in titles if title] == panels


def test_bins_with_few_voxels_are_not_drawn_but_counted() -> None:
    count = torch.tensor([[1, 0, 999_999]])
    figure = reliability_diagram(CalibrationBins(count, count * 0.25, count * 1.0))
    upper, lower = figure.axes
    assert bars(upper) == [(0.666666667, 0, 1.0), (0.666666667, 0.25, 0.75)]
    assert bars(lower) == [(0.666666667, 0, 0.999999)]
    assert upper.get_title() == "Predicted class\npooled ECE 0.7500"


def test_accuracy_if_the_probabilities_were_true_is_marked() -> None:
    upper = reliability_diagram(TOP_LABEL, if_true=IF_TRUE).axes[0]
    assert marks(upper) == [[0.5375, 0.7125, 0.25], [0.7875, 0.9625, 0.75]]
    title = "Predicted class\npooled ECE 0.3250\n0.2167 if probabilities were true"  # (1.4 + 1.2) / 12
    assert upper.get_title() == title
    assert MARK in legend(upper)


def test_bands_are_those_of_resampled_labels() -> None:
    without, upper = (reliability_diagram(TOP_LABEL, bands=bands).axes[0] for bands in (False, True))
    low, high = consistency_bands(TOP_LABEL)
    drawn = [(0.5625, low[0, 2], high[0, 2] - low[0, 2]), (0.8125, low[0, 3], high[0, 3] - low[0, 3])]
    assert bars(upper) == [*bars(without), *(tuple(round(float(value), 9) for value in bar) for bar in drawn)]
    assert marks(upper) == []
    assert upper.get_title() == f"{without.get_title()}\n{resampled_errors(TOP_LABEL).mean():.4f} by chance alone"
    assert BAND in legend(upper)


def test_region_without_voxels() -> None:
    nothing = torch.zeros(1, 4, dtype=torch.float64)
    empty = CalibrationBins(nothing.long(), nothing, nothing)
    upper = reliability_diagram(empty, bands=True).axes[0]
    assert upper.get_title() == "Predicted class\npooled ECE nan\nnan by chance alone"
    assert bars(upper) == []
    assert marks(reliability_diagram(empty, if_true=IF_TRUE).axes[0]) == []


def test_panels_of_regions(tmp_path: Path) -> None:
    regions = {"all voxels": TOP_LABEL, "foreground": TOP_LABEL + TOP_LABEL}
    figure = reliability_diagram(regions, if_true={"foreground": IF_TRUE}, bands=True)
    first, second = figure.axes[::2]
    assert [axes.get_title().split("\n")[0] for axes in (first, second)] == [*regions]
    assert [len(marks(axes)) for axes in (first, second)] == [0, 2]
    assert [len(axes.patches) for axes in (first, second)] == [8, 6]  # bands of two bins, where nothing is marked
    assert set(legend(first)) == {*LABELS, BAND, MARK}
    figure.savefig(tmp_path / "figure.png")
    assert figure.legends[0].get_window_extent().x0 >= 0
    assert figure.legends[0].get_window_extent().x1 <= figure.bbox.width


def test_marks_of_classes() -> None:
    if_true = CalibrationBins(*(torch.stack([field, field], 1) for field in vars(IF_TRUE).values()))
    first, second = reliability_diagram(BINS, ["background", "heart"], if_true).axes[::2]
    assert [mark[2] for mark in marks(first)] == [0.25, 0.75]
    assert marks(second) == []  # the one bin that has voxels would have none if the probabilities were true


@pytest.mark.parametrize(
    ("bins", "if_true", "message"),
    [
        (TOP_LABEL, BINS, "if_true: expected the panels and number of bins of bins, got others in 'Class 0'"),
        (
            {"a": TOP_LABEL},
            {"b": IF_TRUE},
            "if_true: expected the panels and number of bins of bins, got others in 'b'",
        ),
        (
            TOP_LABEL,
            CalibrationBins(*torch.ones(3, 1, 5, dtype=torch.float64)),
            "if_true: expected the panels and number of bins of bins, got others in 'Predicted class'",
        ),
        ({"a": BINS}, None, "bins: expected top-label bins for each title, got classwise bins for 'a'"),
    ],
)
def test_panels_that_do_not_match(bins: Any, if_true: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        reliability_diagram(bins, if_true=if_true)


def test_wrong_number_of_class_names() -> None:
    with pytest.raises(
        ValueError,
        match=r"^class_names: expected 2 names, one per class of the bins, got \['background', 'heart', 'lung'\]$",
    ):
        reliability_diagram(BINS, class_names=["background", "heart", "lung"])


def test_class_names_that_repeat() -> None:
    with pytest.raises(
        ValueError, match=r"^class_names: expected 2 names, one per class of the bins, got \['a', 'a'\]$"
    ):
        reliability_diagram(BINS, class_names=["a", "a"])


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
def test_legend_of_logit_bars_is_within_the_figure(methods: int, names: list[str]) -> None:
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
    image, names = np.random.default_rng(0).normal(size=shape), ["background", "first", "second"]
    figure = uncertainty_overlay(image, label, prediction, label / 1.0, names, "a case")
    panels = figure.axes[:3]
    assert [axes.get_title() for axes in panels] == ["ground truth", "prediction", "uncertainty"]
    assert all(axes.images[0].get_array().shape == shape[::-1] for axes in panels)
    assert [len(axes.collections) for axes in panels] == [0, 1, 0]  # contours: nothing in the ground truth
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["second"]  # what is in the slice
    assert to_rgba(panels[1].collections[0].get_edgecolor()[0]) == legend.get_patches()[0].get_facecolor()
    figure.draw_without_rendering()
    assert legend.get_window_extent().y1 <= min(axes.get_window_extent().y0 for axes in panels)


def test_overlay_draws_each_map_where_it_is() -> None:
    shape = (20, 30)
    label, prediction = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    label[2:5, 20:26], prediction[5:9, 6:12] = 1, 2
    image, uncertainty = np.random.default_rng(0).normal(size=shape), np.linspace(0, 1, 600).reshape(shape)
    figure = uncertainty_overlay(image, label, prediction, uncertainty, ["background", "first", "second"], "a case")
    panels = figure.axes[:3]
    np.testing.assert_array_equal(panels[0].images[0].get_array(), image.T)
    np.testing.assert_array_equal(panels[2].images[1].get_array(), uncertainty.T)
    for axes, x, y in ((panels[0], (1.5, 4.5), (19.5, 25.5)), (panels[1], (4.5, 8.5), (5.5, 11.5))):
        ends = axes.collections[0].get_datalim(axes.transData)
        np.testing.assert_allclose([ends.x0, ends.x1, ends.y0, ends.y1], [*x, *y])


HOSTILE = ["$x_1$", "x$_$y", "_first", "a^b\\alpha", "line\nbreak", "long " * 50, "long" * 50, r"\$", "%d{}", ""]
DRAWN = [  # as matplotlib keeps them: \\$ is a dollar sign
    r"\$x_1\$", r"x\$_\$y", " _first", r"a^b\alpha", r"line\nbreak", f"{'long ' * 7}lo...", f"{'long' * 9}l...",
    r"\\$", "%d{}", "",
]  # fmt: skip


def test_names_and_title_are_drawn_literally(tmp_path: Path) -> None:
    label = np.arange(11).repeat(9).reshape(9, 11) % 11
    figure = uncertainty_overlay(label, label, label, label / 11, ["background", *HOSTILE], "a$_$b\nx$y$\n_c")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == DRAWN
    assert figure.get_suptitle() == "a\\$_\\$b\nx\\$y\\$\n _c"
    figure.savefig(tmp_path / "figure.png")
    for text in figure.findobj(Text):
        assert not text._preprocess_math(text.get_text())[1]


def test_hostile_names_in_the_other_figures(tmp_path: Path) -> None:
    table = np.ones((len(HOSTILE), len(HOSTILE)))
    empty = torch.zeros(1, 3, 2, dtype=torch.float64)
    drawn = {
        "logits": logit_bars(dict.fromkeys(HOSTILE[:2], table), HOSTILE),
        "ranks": rank_heat_map([[1, 2]], [3], [HOSTILE[0]], [*HOSTILE[1:3], "sum"]),
        "reliability": reliability_diagram(CalibrationBins(empty.long(), empty, empty), HOSTILE[:3]),
    }
    assert [text.get_text() for text in drawn["logits"].legends[0].get_texts()] == DRAWN
    assert [axes.get_title() for axes in drawn["logits"].axes] == DRAWN[:2]
    assert drawn["ranks"].axes[0].get_yticklabels()[0].get_text() == DRAWN[0]
    assert [label.get_text() for label in drawn["ranks"].axes[0].get_xticklabels()] == DRAWN[1:3]
    assert drawn["reliability"].axes[0].get_title() == f"{DRAWN[0]}\npooled ECE nan"
    for name, figure in drawn.items():
        figure.savefig(tmp_path / f"{name}.png")
        assert not any(text._preprocess_math(text.get_text())[1] for text in figure.findobj(Text))


def test_overlay_of_hundreds_of_classes() -> None:
    label = 10 * np.arange(40).reshape(5, 8)
    figure = uncertainty_overlay(label, label, label, label / 400, [f"class {k}" for k in range(400)])
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [f"class {k}" for k in range(10, 400, 10)]
    figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().y0 >= 0


@pytest.mark.parametrize("shape", [(1, 8), (8, 1), (1, 1), (1, 512)])
def test_overlay_of_a_line_has_no_contours(shape: tuple[int, int], tmp_path: Path) -> None:
    label = np.ones(shape, np.uint8)
    figure = uncertainty_overlay(label, label / 1.0, label, label / 2, ["background", "heart"])  # as LoadImage has it
    figure.savefig(tmp_path / "figure.png")
    assert [len(axes.collections) for axes in figure.axes[:3]] == [0, 0, 0]
    assert figure.get_figheight() < 20


@pytest.mark.filterwarnings("error")
def test_grey_values_that_are_not_finite_are_drawn_as_the_smallest() -> None:
    label = np.zeros((2, 3), np.uint8)
    image = np.array([[np.inf, -2, 1e38], [-np.inf, np.nan, -3e38]], np.float32)
    drawn = uncertainty_overlay(image, label, label, None, ["background"]).axes[0].images[0]
    lowest = float(image[1, 2])
    assert drawn.get_array().T.tolist() == [[lowest, -2, float(image[0, 2])], [lowest, lowest, lowest]]
    assert np.isfinite(drawn.get_clim()).all()
    for value in (np.nan, np.inf):
        drawn = uncertainty_overlay(np.full((2, 3), value), label, label, None, ["background"]).axes[0].images[0]
        assert not drawn.get_array().any()


def test_overlay_of_background_alone() -> None:
    label = np.zeros((8, 8), np.uint8)
    figure = uncertainty_overlay(label, label, label, label / 1.0, ["background", "heart"])
    assert figure.legends[0].get_texts() == []


def test_class_without_a_name() -> None:
    label = np.full((8, 8), 2)
    with pytest.raises(ValueError, match=r"^class_names: expected a name for each class, got 2 for class 2$"):
        uncertainty_overlay(label, label, label, label / 2, ["background", "heart"])


def test_rank_lines_have_a_line_for_each_method_and_its_name_at_both_ends() -> None:
    panels = {"without": [[1, 2.5], [2, 2.5], [3, 1]], "with": [[3, 1], [1, 2], [2, 3]]}
    figure = rank_lines(panels, ["A", "$B", "C"], ["ECE", "NLL"])
    first, last = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["without", "with"]
    assert [line.get_ydata().tolist() for line in first.lines] == panels["without"]
    assert [line.get_ydata().tolist() for line in last.lines] == panels["with"]
    assert first.get_ylim()[0] > first.get_ylim()[1]  # rank 1 on top
    for axes, column in ((first, 0), (last, 1)):
        names = {text.xy: text.get_text() for text in axes.texts if hasattr(text, "xy")}
        expected = {
            (column, ranks[column]): name
            for name, ranks in zip(("A", r"\$B", "C"), panels[axes.get_title()], strict=True)
        }
        assert names == expected
    assert "2.5" in [text.get_text() for text in first.texts]


def test_rank_lines_of_one_panel_and_of_many_methods() -> None:
    ranks = [[rank, rank] for rank in range(1, 10)]
    (axes,) = rank_lines({"": ranks}, [f"M{i}" for i in range(9)], ["ECE", "NLL"]).axes
    assert len([text for text in axes.texts if text.get_text().startswith("M")]) == 18  # at both ends
    assert [line.get_linestyle() for line in axes.lines] == ["-"] * 8 + ["--"]  # colours repeat


def test_mean_intervals_have_a_line_and_a_mark_for_each_row() -> None:
    means = [[2, 1, 4], [7, 6, 9], [np.nan, np.nan, np.nan]]
    panels = {f"panel {i}": np.array(means) + i for i in range(4)}
    figure = mean_intervals(panels, ["A", "$B", "C"], [False, True, False])
    assert [axes.get_title() for axes in figure.axes] == list(panels)  # the two empty places have no axes
    first, *_, last = figure.axes
    assert [text.get_text() for text in first.get_yticklabels()] == ["A", r"\$B", "C"]
    assert first.get_ylim()[0] > first.get_ylim()[1]  # the first row on top
    lines, marks = last.lines[::2], last.lines[1::2]
    assert [list(line.get_xdata()) for line in lines[:2]] == [[4, 7], [9, 12]]
    assert [list(line.get_ydata()) for line in lines] == [[row, row] for row in range(3)]
    assert [(float(mark.get_xdata()[0]), mark.get_ydata()[0]) for mark in marks[:2]] == [(5, 0), (10, 1)]
    assert [mark.get_markerfacecolor() == "white" for mark in marks] == [False, True, False]
    assert first.get_xlim() != last.get_xlim()


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: reliability_diagram({}), "bins: expected at least one panel, got none"),
        (lambda: mean_intervals({}, [], []), "panels: expected at least one, got none"),
        (lambda: logit_bars({}, ["background"]), "magnitudes: expected at least one method, got none"),
        (lambda: volume_agreement({}, "ml"), "volumes: expected at least one structure, got none"),
        (lambda: threshold_curves({}), "tables: expected at least one structure, got none"),
        (
            lambda: uncertainty_overlay(None, np.full((4, 4), 0.5), np.zeros((4, 4), int), None, ["background"]),
            "label: expected class indices, got values that are not whole numbers",
        ),
    ],
)
def test_what_cannot_be_drawn(draw: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        draw()
