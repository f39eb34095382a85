from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from calib_components.figures import expected_dsc_scatter, risk_coverage_curves, threshold_curves, volume_agreement
from calib_components.figures.clinical import _short, _shrink, _stretch
from calib_components.metrics import RiskCoverageMetric, ThresholdTable, structure_volumes

NAMES = ["right ventricle", "$x_1$", "a structure with a name that is far longer than its panel is wide, twice", "_b"]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def table(*dsc: float) -> ThresholdTable:
    values = torch.tensor(dsc, dtype=torch.float64)
    return ThresholdTable(torch.linspace(0.25, 0.75, len(dsc)), values, 1 - values, 0.5 * values, values)


def volumes(scale: float = 1.0) -> list[np.ndarray]:
    """Expected, true, low and high of three cases; the second is above its range."""
    return [scale * np.array(values) for values in ([12.0, 20, 30], [10.0, 26, 30], [8.0, 15, 29], [15.0, 25, 31])]


def test_volumes() -> None:
    (axes,) = volume_agreement({"tumour": volumes()}, "ml").axes
    assert axes.get_title() == "tumour\nbias -1.3 ml\nin range: 2 of 3"  # (2 - 6 + 0) / 3
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("true volume (ml)", "expected volume (ml)")
    ranges, inside, outside, absent = axes.collections
    assert [segment.tolist() for segment in ranges.get_segments()] == [
        [[10, 8], [10, 15]],
        [[26, 15], [26, 25]],
        [[30, 29], [30, 31]],
    ]
    assert inside.get_offsets().tolist() == [[10, 12], [30, 30]]
    assert outside.get_offsets().tolist() == [[26, 20]]
    assert len(absent.get_offsets()) == 0
    assert axes.get_xlim() == axes.get_ylim() == (0, pytest.approx(1.05 * 31))


def test_volumes_of_a_metric_in_its_order() -> None:
    found = structure_volumes(torch.tensor([[[0.99, 0.5, 0.2]]]), torch.tensor([[[1, 1, 0]]]), {"a": [0]})
    (axes,) = volume_agreement({"a": [each[:, 0] for each in found]}, "voxels").axes
    assert axes.get_title() == "a\nbias -0.31 voxels\nin range: 1 of 1"
    assert axes.collections[1].get_offsets().tolist() == [[2, pytest.approx(1.69)]]


def test_cases_without_a_volume_are_left_out() -> None:
    given = volumes()
    given[1][0] = np.nan
    (axes,) = volume_agreement({"a": given}, "ml").axes
    assert axes.get_title() == "a\nbias -3.0 ml\nin range: 1 of 2"
    (axes,) = volume_agreement({"a": [[], [], [], []]}, "ml").axes
    assert axes.get_title() == "a\nno case\nin range: 0 of 0"
    (axes,) = volume_agreement({"a": [[0.0]] * 4}, "ml").axes
    assert axes.get_title() == "a\nbias +0.00 ml\nin range: 0 of 0"


def test_cases_without_the_structure_are_not_counted_in_range() -> None:
    expected, true, low, high = [12.0, 5, 3], [10.0, 0, 0], [8.0, 0, 1], [15.0, 9, 4]
    figure = volume_agreement({"a": [expected, true, low, high]}, "ml")
    (axes,) = figure.axes
    assert axes.get_title() == "a\nbias +3.3 ml\nin range: 1 of 1"  # (2 + 5 + 3) / 3
    _, inside, outside, absent = (collection.get_offsets().tolist() for collection in axes.collections)
    assert (inside, outside, absent) == ([[10, 12]], [], [[0, 5], [0, 3]])
    assert legend(figure)[-3:] == ["true volume in this range", "true volume outside", "case without the structure"]


def test_thresholds() -> None:
    figure = threshold_curves({"tumour": table(0.5, 0.75, 0.25)}, {"tumour": 0.25})
    (axes,) = figure.axes
    sensitivity, specificity, ppv, dsc, line, chosen = axes.lines
    assert sensitivity.get_xdata().tolist() == [0.25, 0.5, 0.75]
    assert specificity.get_ydata().tolist() == [0.5, 0.25, 0.75]
    assert ppv.get_ydata().tolist() == [0.25, 0.375, 0.125]
    assert dsc.get_ydata().tolist() == [0.5, 0.75, 0.25]
    assert list(line.get_xdata()) == [0.25, 0.25]
    assert (chosen.get_xdata().tolist(), chosen.get_ydata().tolist()) == ([0.25], [0.5])
    assert legend(figure) == ["sensitivity", "specificity", "PPV", "DSC", "chosen threshold"]
    assert axes.get_xlabel() == "threshold of the probability"


def test_threshold_that_was_not_chosen_is_not_marked() -> None:
    figure = threshold_curves({"a": table(0.5, 0.75, 0.25)})
    assert len(figure.axes[0].lines) == 4
    assert legend(figure) == ["sensitivity", "specificity", "PPV", "DSC"]


@pytest.mark.parametrize(("number", "columns"), [(1, 1), (2, 2), (3, 3), (4, 2), (5, 3), (7, 3)])
def test_panels_fill_their_rows(number: int, columns: int) -> None:
    figure = threshold_curves({f"s{i}": table(0.5, 0.75, 0.25) for i in range(number)})
    figure.draw_without_rendering()
    assert len({round(axes.get_position().x0, 3) for axes in figure.axes}) == columns


def test_risk_in_per_cent() -> None:
    metric = RiskCoverageMetric()
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(2, 1, 1000, generator=generator)
    metric(p, (torch.rand(p.shape, generator=generator) < p).long())
    figure = risk_coverage_curves(metric.coverage, {"NACL": metric.risk.mean(0), "_x": metric.risk[0]})
    (axes,) = figure.axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 100 * metric.risk.mean(0))
    assert legend(figure) == ["NACL", " _x"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "50", "90", "99", "99.9", "100"]
    assert "(%)" in axes.get_xlabel()
    assert "(%)" in axes.get_ylabel()


def test_axis_of_coverage_is_invertible() -> None:
    coverage = np.array([0, 0.3, 0.99, 0.9999, 1])
    assert (np.diff(_stretch(coverage)) > 0).all()
    np.testing.assert_allclose(_shrink(_stretch(coverage)), coverage, atol=1e-12)


def test_expected_dsc() -> None:
    (axes,) = expected_dsc_scatter([0.9, 0.7, np.nan, 0.5], [0.8, 0.65, 0.1, np.nan]).axes
    assert axes.collections[0].get_offsets().tolist() == [[0.9, 0.8], [0.7, 0.65]]
    assert axes.get_xlim() == axes.get_ylim() == (0.6, 1)
    (axes,) = expected_dsc_scatter([np.nan], [1]).axes
    assert axes.get_xlim() == (0.9, 1)
    assert expected_dsc_scatter([0.5], [0.0]).axes[0].get_xlim() == (0, 1)


def test_numbers_at_an_axis() -> None:
    assert [_short(value) for value in (0, 0.25, 7500, 25000, 4e6, 1.5e6)] == ["0", "0.25", "7500", "25k", "4M", "1.5M"]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_nothing_overlaps(number: int, tmp_path: Path) -> None:
    names = NAMES[-number:]
    curve = np.linspace(0, 0.1, 5)
    figures = [
        volume_agreement({name: volumes(10.0 ** (2 * i)) for i, name in enumerate(names)}, "voxels"),
        threshold_curves({name: table(0.5, 0.75, 0.25) for name in names}, dict.fromkeys(names, 0.5)),
        risk_coverage_curves([0.1, 0.5, 0.9, 0.99, 1], {f"{name}{i}": curve for name in names for i in range(number)}),
        expected_dsc_scatter([0.9], [0.8]),
    ]
    for figure in figures:
        figure.savefig(tmp_path / "figure.png")
        assert not any(text._preprocess_math(text.get_text())[1] for text in figure.findobj(Text))
        boxes = [axes.get_tightbbox() for axes in figure.axes] + [figure.legends[0].get_window_extent()]
        for i, box in enumerate(boxes):
            assert box.x0 >= 0
            assert box.y0 >= 0
            assert box.x1 <= figure.bbox.width
            assert box.y1 <= figure.bbox.height
            assert not any(box.overlaps(other) for other in boxes[i + 1 :])
