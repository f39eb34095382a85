"""What every part asks of probabilities: whether they are such, and in which bin one lies."""

from __future__ import annotations

import torch

RANGE_TOLERANCE = 1e-5  # beyond 0 and 1
SUM_TOLERANCE = 1e-2  # of a sum over classes: half precision rounds it by about this much


def are_probabilities(values: torch.Tensor, class_axis: int | None = None) -> torch.Tensor:
    """Whether values are from 0 to 1 and, with a `class_axis`, sum to 1 along it.

    The result is a tensor, `()`, for which a GPU does not wait. NaN is no probability, and of no
    values the answer is no.
    """
    if not values.numel():
        return torch.zeros((), dtype=torch.bool, device=values.device)
    low, high = values.aminmax()
    are_valid = (low >= -RANGE_TOLERANCE) & (high <= 1 + RANGE_TOLERANCE)
    if class_axis is not None:
        low, high = values.sum(class_axis).aminmax()
        are_valid = are_valid & (low >= 1 - SUM_TOLERANCE) & (high <= 1 + SUM_TOLERANCE)
    return are_valid


def describe_range(values: torch.Tensor, class_axis: int | None = None) -> str:
    """Return the range of values, and of their sums along an axis, for an error."""
    low, high = values.aminmax()
    text = f"values from {low:.4g} to {high:.4g}"
    if class_axis is None:
        return text
    low, high = values.sum(class_axis).aminmax()
    return f"{text}, whose sums are from {low:.4g} to {high:.4g}"


def bin_index(p: torch.Tensor, num_bins: int) -> torch.Tensor:
    """Bin `(lo, hi]` of each probability, int64; 0 is in the first bin, NaN in an arbitrary one."""
    # The edge i / num_bins, whichever way it was rounded, scales to less than i and so falls into
    # the bin below.
    return (p.double() * (num_bins * (1 - 1e-15))).long().clamp_(0, num_bins - 1)
