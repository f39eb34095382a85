"""The confidence at which NACL is smallest where all neighbours have one class, see `NACLLoss`."""

from __future__ import annotations

import math

import pytest
import torch

from calib_components.losses import NACLLoss


def assert_minimum(logits: torch.Tensor, weight: float, prior: str = "mean") -> None:
    """The loss of an image of class 1 that has these logits everywhere, which is convex, grows in all directions."""

    def loss(logits: torch.Tensor) -> float:
        image = logits[None, :, None, None].expand(-1, -1, 4, 4)
        return NACLLoss(penalty_weight=weight, prior=prior)(image, torch.ones(1, 1, 4, 4)).item()

    generator = torch.Generator().manual_seed(0)
    directions = [*torch.eye(len(logits)).double(), torch.ones(len(logits)).double()]
    directions += [torch.randn(len(logits), generator=generator, dtype=torch.float64) for _ in range(20)]
    for direction in directions:
        assert min(loss(logits + step * direction) for step in (-1e-2, 1e-2)) >= loss(logits) - 1e-15
    assert min(loss(logits + step * directions[1]) for step in (-1e-2, 1e-2)) > loss(logits)


@pytest.mark.parametrize("prior", ["mean", "gaussian"])
@pytest.mark.parametrize("num_classes", [2, 4, 8])
@pytest.mark.parametrize("weight", [0.01, 0.1, 0.5])
def test_confidence_is_at_most_one_less_the_weight_by_the_classes(num_classes: int, weight: float, prior: str) -> None:
    confidence = 1 - weight / num_classes
    logits = torch.zeros(num_classes, dtype=torch.float64)
    logits[1] = math.log(confidence * (num_classes - 1) / (1 - confidence))
    assert logits.softmax(0)[1] == pytest.approx(confidence)
    assert_minimum(logits, weight, prior)


@pytest.mark.filterwarnings("ignore:input holds only values from 0 to 1")  # as it should be here
@pytest.mark.parametrize(("num_classes", "weight"), [(2, 0.55), (2, 2.0), (4, 2.2)])
def test_large_weight_keeps_the_logit_at_the_prior(num_classes: int, weight: float) -> None:
    assert weight / num_classes > (num_classes - 1) / (math.e + num_classes - 1)
    assert_minimum(torch.eye(num_classes, dtype=torch.float64)[1], weight)
