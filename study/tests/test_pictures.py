"""The pictures of pages are drawn, and show the numbers of the cases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from calib_components.losses import NACLLoss
from study.tables.draw_magnitudes import draw_magnitudes
from study.tables.draw_penalty_weight import ceiling, draw_penalty_weight
from study.tables.draw_regions import draw_regions
from study.tables.draw_results import ROWS, draw_panel, draw_results
from study.tables.fill_tables import mean


@pytest.mark.parametrize(
    "draw",
    [
        draw_penalty_weight,
        draw_results,
        draw_magnitudes,
        pytest.param(draw_regions, marks=pytest.mark.slow),
    ],
)
def test_picture_is_drawn(draw: Callable[[Path], None], tmp_path: Path) -> None:
    draw(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 20_000


def test_panel_of_means_has_a_line_and_a_mark_for_each_row() -> None:
    axes = Figure().subplots()
    draw_panel(axes, "nll_all", "lge")
    lines, marks = axes.lines[::2], axes.lines[1::2]
    assert len(lines) == len(marks) == len(ROWS)
    value, low, high, *_ = mean("nacl+T", "lge", "nll_all")
    row = ROWS.index("nacl+T")
    assert [*lines[row].get_xdata()] == [low, high]
    assert (*marks[row].get_xdata(), *marks[row].get_ydata()) == (value, row)
    assert [mark.get_markerfacecolor() == "white" for mark in marks[:2]] == [False, True]


def losses(logits: torch.Tensor, weight: float) -> torch.Tensor:
    """The loss of each row of logits `(rows, N)` where all voxels have them, and the label 0."""
    loss = NACLLoss(penalty_weight=weight)
    label = torch.zeros(1, 1, 3, 3, dtype=torch.long)
    return torch.stack(
        [loss(row[None, :, None, None].expand(-1, -1, 3, 3), label) for row in logits]
    )


@pytest.mark.filterwarnings("ignore")  # logits from 0 to 1 look like probabilities
@pytest.mark.parametrize("num_classes", [2, 4])
# The last one, of two classes, beyond where the rule holds
@pytest.mark.parametrize("weight", [0.03, 0.1, 0.3, 0.9])
def test_ceiling_is_where_the_loss_is_smallest(weight: float, num_classes: int) -> None:
    logits = torch.zeros(1200, num_classes, dtype=torch.float64)
    logits[:, 0] = torch.linspace(0, 12, 1200)
    best = logits[losses(logits, weight).argmin()]
    assert best.softmax(0)[0].item() == pytest.approx(ceiling(weight, num_classes), abs=2e-3)
