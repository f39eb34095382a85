"""Sums of weights by an index."""

from __future__ import annotations

import torch

__all__ = ["bincount"]


def bincount(index: torch.Tensor, weights: torch.Tensor | None, size: int) -> torch.Tensor:
    """Return what `torch.bincount` does, also where PyTorch is told to use deterministic algorithms alone.

    Args:
        index: Whole numbers from 0 to `size - 1`, `(n,)`.
        weights: What is summed, `(n,)`; None to count.
        size: Length of the result.
    """
    if weights is None or not (index.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return torch.bincount(index, weights, size)
    return torch.zeros(size, dtype=torch.float64, device=index.device).index_add_(0, index, weights.double())
