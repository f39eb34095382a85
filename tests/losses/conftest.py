"""What the tests of the losses share: the golden values, and every loss with what it is defined for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden"


@pytest.fixture
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """Loads a file of golden values by its name."""

    def load(name: str) -> dict[str, np.ndarray]:
        path = GOLDEN / name
        if not path.exists():
            pytest.skip(f"golden values are not part of the repository, and {path} does not exist")
        with np.load(path) as values:
            return dict(values)

    return load


@pytest.fixture
def loss_and_grad() -> Callable[..., tuple[Tensor, Tensor]]:
    """Computes a loss and its gradient with respect to the logits."""

    def compute(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits.detach().requires_grad_()
        value = loss(logits, target)
        (grad,) = torch.autograd.grad(value, logits)
        return value.detach(), grad

    return compute
