"""Inference that does not depend on how slices are turned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer

__all__ = ["OrientationInferer"]


class OrientationInferer(Inferer):
    """Average the logits over the flips and quarter turns of the slices, or leave another inferer as it is.

    Square slices are seen in all eight orientations, others in the four that keep their size. For square slices the
    prediction then turns with the image, exactly but for rounding, whatever the network has learnt.

    Args:
        inferer: Infers a volume, such as MONAI's `SliceInferer`.
        average: Whether to average; if not, this inferer does what the other does.
    """

    def __init__(self, inferer: Inferer, average: bool = False) -> None:
        super().__init__()
        self.inferer = inferer
        self.average = average

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the logits `(B, N, H, W, D)` of `(B, C, H, W, D)`."""
        if not self.average:
            return self.inferer(inputs, network, *args, **kwargs)
        turns = range(4) if inputs.shape[2] == inputs.shape[3] else (0, 2)
        total: Any = 0
        for flip in ([], [2]):
            for quarter in turns:
                seen = inputs.flip(flip).rot90(quarter, (2, 3)).contiguous()
                total = total + self.inferer(seen, network, *args, **kwargs).rot90(-quarter, (2, 3)).flip(flip)
        return total / (2 * len(turns))
