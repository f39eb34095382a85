"""Labelled cases, and an evaluator of a network that predicts what it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ignite.engine import Engine

STRUCTURES = {"core": [1], "whole": [1, 2]}
NAMES = ["air", "core", "rim"]
TRUE = 0.6  # temperature at which the logits of a case give the probabilities of its labels


class Replay(Engine):
    """Its output is the cases themselves."""

    def __init__(self, items: Sequence[dict[str, Any]]) -> None:
        super().__init__(lambda _, batch: [dict(item) for item in batch])
        self.items = items

    def run(self) -> Any:  # type: ignore[override]
        return super().run([[item] for item in self.items])


def example(number: int) -> dict[str, Any]:
    """A case of three classes; in the second, the first structure is missing from the
    prediction.
    """
    generator = torch.Generator().manual_seed(number)
    shape = (8, 7, 4 + number)
    logits = 3 * torch.randn(3, *shape, generator=generator)
    p = (logits / TRUE).softmax(0).flatten(1).T
    label = p.multinomial(1, generator=generator).view(1, *shape)
    if number == 1:
        logits[1] = -9
    return {
        "case": f"case{number}",
        "patient": f"patient{number // 2}",
        "image": torch.randn(1, *shape, generator=generator),
        "label": label,
        "pred": logits,
    }


def examples(last: int, first: int = 0) -> list[dict[str, Any]]:
    return [example(number) for number in range(first, last)]
