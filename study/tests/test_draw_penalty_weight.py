"""The ceiling of NACL's confidence that is drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from calib_components.losses import NACLLoss
from study.tables.draw_penalty_weight import ceiling, draw_penalty_weight


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


def test_picture_is_drawn(tmp_path: Path) -> None:
    draw_penalty_weight(out=tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 30_000
