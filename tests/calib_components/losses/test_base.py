"""The base of the losses: bad input and compiled code."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch

from calib_components.errors import InputError
from calib_components.losses import (
    CalibrationLoss,
    EntropyPenaltyLoss,
    FocalLoss,
    L1ACEDiceCELoss,
    L1ACELoss,
    LabelSmoothingLoss,
    MbLSLoss,
    NACLLoss,
    SVLSLoss,
    base,
    neighbor_prior,
)
from tests.calib_components.losses.test_losses import (
    FORMULAS,
    SHAPES,
    example,
    one_hot,
    value_and_gradient,
)

X, Y = example(SHAPES[0])
P = X.softmax(1)
NAN = torch.where(X.max() == X, math.nan, X)


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (X[0], Y, "input must be logits"),
        (X[:0], Y[:0], "at least one voxel, got"),
        (X[:, :1], Y, "one channel x of a sigmoid"),
        (X, Y[..., :4], "target must have shape"),
        (X, Y + 2, "target: class indices must be from 0 to 3, got values from 2 to 4"),
        (X, Y - 1, "target: class indices must be from 0 to 3, got values from -1 to 1"),
        (X, Y + 0.5, "whole numbers"),
        (X, Y.float().masked_fill(Y == 1, math.nan), "whole numbers"),
        (X, X, "target: probabilities .* from 0 to 1"),
        (X, X.sigmoid(), "sum to 1"),
        (NAN, Y, "input: logits must be finite"),
        (torch.where(X.max() == X, math.inf, X), Y, "input: logits must be finite"),
        (Y.expand_as(X), Y, "input must be logits, floating point, got torch.int64"),
        (X > 0, Y, "input must be logits, floating point, got torch.bool"),
        (X, Y.to(torch.complex64), "target must hold real numbers"),
        ([X, X], Y, "input must be a tensor, got list. Of deep supervision"),
        (X, None, "target must be a tensor, got NoneType"),
    ],
)
def test_bad_input(logits: Any, target: Any, message: str) -> None:
    for loss in (NACLLoss(), LabelSmoothingLoss(), L1ACELoss(), L1ACEDiceCELoss()):
        with pytest.raises(InputError, match=message):
            loss(logits, target)


def test_ignore_index_and_target() -> None:
    with pytest.raises(InputError, match="or ignore_index 254"):
        SVLSLoss(ignore_index=254)(X, torch.full_like(Y, 255))
    with pytest.raises(InputError, match="ignore_index"):
        MbLSLoss(ignore_index=255)(X, P)
    torch.testing.assert_close(NACLLoss(ignore_index=-100)(X, Y.to(torch.uint8)), NACLLoss()(X, Y))


@pytest.mark.parametrize(
    ("loss", "option", "value"),
    [
        (NACLLoss, "prior", "average"),
        (NACLLoss, "padding", "zeros"),
        (NACLLoss, "penalty", "L1"),
        (NACLLoss, "constraint", "logit"),
        (NACLLoss, "penalty_weight", -0.1),
        (NACLLoss, "kernel_size", 4),
        (NACLLoss, "kernel_size", -1),
        (NACLLoss, "kernel_size", 10**9 + 1),
        (NACLLoss, "ignore_index", "a"),
        (NACLLoss, "ignore_index", 1.5),
        (NACLLoss, "ignore_index", True),
        (SVLSLoss, "kernel_size", 1),
        (SVLSLoss, "sigma", 0),
        (FocalLoss, "gamma", -1),
        (LabelSmoothingLoss, "alpha", 2),
        (MbLSLoss, "margin", math.nan),
        (MbLSLoss, "penalty_weight", -1),
        (EntropyPenaltyLoss, "penalty_weight", -1),
        (L1ACELoss, "num_bins", 0),
        (L1ACELoss, "num_bins", 10**9),
        (L1ACEDiceCELoss, "penalty_weight", -1),
    ],
)
def test_bad_options(loss: type, option: str, value: object) -> None:
    with pytest.raises(InputError, match=f"^{option}"):
        loss(**{option: value})


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((Y, 1), "num_classes"),
        ((Y[0, 0], 4), "target"),
        ((torch.zeros(1, 2, 5, 5, 5), 3), "target"),
        ((Y, 2), "target"),
        ((P, 4, "mode"), "target"),
    ],
)
def test_bad_arguments_of_a_prior(arguments: tuple, name: str) -> None:
    with pytest.raises(InputError, match=f"^{name}"):
        neighbor_prior(*arguments)


class MadeUpLoss(CalibrationLoss):
    def voxel_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (logits - labels).square().sum(1)


def test_a_new_loss_is_its_formula_for_a_voxel() -> None:
    loss, counted = MadeUpLoss(ignore_index=0), Y != 0
    value, gradient = value_and_gradient(loss, X, Y)
    squares = (X - one_hot(Y, 4)).square().sum(1, keepdim=True)
    torch.testing.assert_close(value, squares[counted].mean())
    torch.testing.assert_close(gradient, 2 * (X - one_hot(Y, 4)) * counted / counted.sum())


@pytest.mark.parametrize("loss", [NACLLoss(), FocalLoss()], ids=repr)
def test_probabilities_in_place_of_logits_warn_once(loss: torch.nn.Module) -> None:
    for activated in (P, X.sigmoid(), one_hot(Y, 4)):
        base.warn_once.cache_clear()
        with pytest.warns(UserWarning, match="softmax"):
            loss(activated, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(P, Y)
        base.warn_once.cache_clear()
        for logits in (X, torch.zeros_like(X), 1.5 * P, torch.cat([P[:2], X[2:]])):
            loss(logits, Y)


@pytest.mark.parametrize(
    "name", ["nacl_mean", "nacl_mode", "nacl_median", "svls", "focal", "l1_ace_dice_ce"]
)
def test_compiled_equals_eager(name: str) -> None:
    loss = FORMULAS[name][0](ignore_index=1)
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(value_and_gradient(compiled, X, Y), value_and_gradient(loss, X, Y))
    if name == "nacl_mean":
        with pytest.raises(RuntimeError, match="class indices must be from 0 to 3"):
            compiled(X, Y + 2)
        with pytest.raises(RuntimeError, match="logits must be finite"):
            compiled(NAN, Y)
