"""The confidence at which NACL is smallest where all neighbours have one class, see `NACLLoss`."""

from __future__ import annotations

import math

import pytest
import torch

from calib_components.losses import NACLLoss


def loss_of(logits: torch.Tensor, weight: float, prior: str) -> float:
    """NACL of one volume of class 1 with the same logits `(N,)` everywhere."""
    everywhere = logits[None, :, None, None].expand(-1, -1, 4, 4)
    return NACLLoss(penalty_weight=weight, prior=prior)(everywhere, torch.ones(1, 1, 4, 4, dtype=torch.long)).item()


@pytest.mark.parametrize("prior", ["mean", "gaussian"])
@pytest.mark.parametrize("num_classes", [2, 4, 5, 8])
@pytest.mark.parametrize("weight", [0.01, 0.1, 0.3, 0.5])
def test_confidence_is_at_most_one_less_the_weight_by_the_classes(num_classes: int, weight: float, prior: str) -> None:
    confidence = 1 - weight / num_classes
    lowest = torch.zeros(num_classes, dtype=torch.float64)
    lowest[1] = math.log(confidence * (num_classes - 1) / (1 - confidence))
    assert lowest.softmax(0)[1] == pytest.approx(confidence)
    check_minimum(lowest, weight, prior)


@pytest.mark.filterwarnings("ignore:input. expected logits, got only values from 0 to 1")  # as it should be here
@pytest.mark.parametrize(("num_classes", "weight"), [(2, 0.55), (2, 2.0), (4, 2.2)])
def test_large_weight_keeps_the_logit_at_the_prior(num_classes: int, weight: float) -> None:
    assert weight / num_classes > (num_classes - 1) / (math.e + num_classes - 1)
    check_minimum(torch.eye(num_classes, dtype=torch.float64)[1], weight, "mean")


def check_minimum(lowest: torch.Tensor, weight: float, prior: str) -> None:
    """A convex function that is smaller in no direction from a point has its minimum there.

    It is unique but for two classes, where the loss is the same if one logit moves towards its prior and one away.
    """
    least = loss_of(lowest, weight, prior)
    generator = torch.Generator().manual_seed(0)
    directions = [*torch.eye(len(lowest)).double(), torch.ones(len(lowest)).double()]
    directions += [torch.randn(len(lowest), generator=generator, dtype=torch.float64) for _ in range(20)]
    for direction in directions:
        for step in (-1e-2, 1e-2):
            assert loss_of(lowest + step * direction, weight, prior) >= least - 1e-15
    for step in (-1e-2, 1e-2):
        assert loss_of(lowest + step * torch.eye(len(lowest))[1], weight, prior) > least
