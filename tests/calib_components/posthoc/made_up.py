"""Logits, and labels drawn from their calibrated probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def draw(
    shape: tuple[int, ...],
    scale: Sequence[float] | float = 1 / 1.7,
    bias: Sequence[float] | float = 0.0,
    spread: float = 3.0,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `(B, N, *S)`, each case shifted its own way, and labels drawn from the softmax of
    them times scale plus bias.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(shape, generator=generator)
    logits[:, 0] += torch.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 2)) / 2
    noise = -torch.empty(shape).exponential_(generator=generator).log()
    true = (logits.movedim(1, -1) * torch.tensor(scale) + torch.tensor(bias)).movedim(-1, 1)
    return logits, (true + noise).argmax(1, keepdim=True)


def voxels(logits: torch.Tensor, y: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Logits `(voxels, N)` and labels `(voxels,)` for other libraries."""
    return logits.double().movedim(1, -1).flatten(0, -2).numpy(), y.flatten().numpy()
