"""The ceiling of NACL's confidence that is drawn, and that the page on its weight states."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from calib_components.losses import NACLLoss
from scripts.draw_penalty_weight import ceiling, draw_penalty_weight
from tests.helpers import ROOT
from tests.integration.test_published_results import compare_picture


def losses(logits: torch.Tensor, weight: float) -> torch.Tensor:
    """The loss of each row of logits `(rows, N)` where all voxels have them, and the label 0."""
    loss = NACLLoss(penalty_weight=weight)
    label = torch.zeros(1, 1, 3, 3, dtype=torch.long)
    return torch.stack([loss(row[None, :, None, None].expand(-1, -1, 3, 3), label) for row in logits])


@pytest.mark.filterwarnings("ignore:input. expected logits, got only values from 0 to 1")
@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("weight", [0.03, 0.1, 0.3, 0.9])  # the last one, of two classes, beyond where the rule holds
def test_ceiling_is_where_the_loss_is_smallest(weight: float, num_classes: int) -> None:
    logits = torch.zeros(1200, num_classes, dtype=torch.float64)
    logits[:, 0] = torch.linspace(0, 12, 1200)
    best = logits[losses(logits, weight).argmin()]
    assert best.softmax(0)[0].item() == pytest.approx(ceiling(weight, num_classes), abs=2e-3)
    others = best.repeat(2, 1)
    others[:, 1] += torch.tensor([0.05, -0.05])  # the other logits rest at 0
    assert losses(others, weight).min() > losses(best[None], weight)[0]


def test_page_states_the_ceiling() -> None:
    page = (ROOT / "docs" / "penalty_weight.md").read_text()
    rows = re.findall(r"^\| (0\.\d+).* \| (0\.\d+) \| (0\.\d+) \| (0\.\d+) \|$", page, re.MULTILINE)
    assert len(rows) == 4
    for weight, *shown in np.array(rows, float).tolist():
        assert shown == pytest.approx([ceiling(weight, num_classes) for num_classes in (2, 4, 8)], abs=6e-5)


def test_picture_is_that_of_the_results(tmp_path: Path) -> None:
    compare_picture("penalty_weight.png", draw_penalty_weight, tmp_path)
