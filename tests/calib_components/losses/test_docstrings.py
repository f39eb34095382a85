"""What the docstrings of the losses state: the plain PyTorch code that a loss equals, and its default options."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss

from calib_components.losses import (
    EntropyPenaltyLoss,
    FocalLoss,
    L1ACEDiceCELoss,
    L1ACELoss,
    LabelSmoothingLoss,
    MbLSLoss,
    NACLLoss,
    SVLSLoss,
    entropy_penalty_loss,
    focal_loss,
    l1_ace_dice_ce_loss,
    l1_ace_loss,
    label_smoothing_loss,
    mbls_loss,
    nacl_loss,
    neighbor_prior,
    svls_loss,
)

PRIOR = {"prior": "mean", "kernel_size": 3, "sigma": 2.0, "padding": "replicate"}
ACE = {"num_bins": 20, "ignore_empty_classes": True}
# The public defaults: the settings of the paper's Table 1, and those of the experiments with L1-ACE.
DEFAULTS: dict[Callable[..., Any], dict[str, Any]] = {
    NACLLoss: {**PRIOR, "penalty": "l1", "constraint": "logits", "penalty_weight": 0.1},
    SVLSLoss: {"kernel_size": 3, "sigma": 2.0},
    MbLSLoss: {"margin": 5.0, "penalty_weight": 0.1},
    EntropyPenaltyLoss: {"penalty_weight": 0.1},
    LabelSmoothingLoss: {"alpha": 0.1},
    FocalLoss: {"gamma": 3.0},
    L1ACELoss: ACE,
    L1ACEDiceCELoss: {"penalty_weight": 1.0, **ACE},
    neighbor_prior: PRIOR,
}
FUNCTIONS: dict[type[torch.nn.Module], Callable[..., torch.Tensor]] = {
    NACLLoss: nacl_loss,
    SVLSLoss: svls_loss,
    MbLSLoss: mbls_loss,
    EntropyPenaltyLoss: entropy_penalty_loss,
    LabelSmoothingLoss: label_smoothing_loss,
    FocalLoss: focal_loss,
    L1ACELoss: l1_ace_loss,
    L1ACEDiceCELoss: l1_ace_dice_ce_loss,
}
LOSSES = [
    NACLLoss(penalty_weight=0.3),
    SVLSLoss(kernel_size=5, sigma=1.0),
    MbLSLoss(margin=0.5, penalty_weight=0.3),
    EntropyPenaltyLoss(penalty_weight=0.3),
    LabelSmoothingLoss(alpha=0.3),
    FocalLoss(gamma=2.0),
    L1ACELoss(num_bins=7, ignore_empty_classes=False),
    L1ACEDiceCELoss(penalty_weight=0.3, num_bins=7),
]


def options_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The options of a loss, in order, with their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}


def documented_code(loss: torch.nn.Module) -> str:
    """The code block that follows the first line of the docstring."""
    block = re.match(r"[^\n]+\n\n```python\n(.*?)```\n", inspect.getdoc(type(loss)) or "", re.DOTALL)
    assert block is not None, f"{type(loss).__name__}: expected a code block after the first line of the docstring"
    return block[1]


def value_and_gradient(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], logits: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits.detach().requires_grad_()
    value = loss(logits, target)
    return value.detach(), torch.autograd.grad(value, logits)[0]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("shape", [(2, 4, 6, 5), (1, 3, 4, 5, 3)], ids=["2d", "3d"])
def test_loss_equals_the_code_in_its_docstring(loss: torch.nn.Module, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(shape, generator=generator)
    labels = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)

    def documented(input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        names: dict[str, Any] = {name: getattr(loss, name) for name in options_of(type(loss))}
        names |= {"torch": torch, "F": F, "neighbor_prior": neighbor_prior}
        names |= {"DiceCELoss": DiceCELoss, "L1ACELoss": L1ACELoss}
        names |= {"input": input, "target": target, "num_classes": input.shape[1]}
        exec(documented_code(loss), names)
        return names["loss"]

    torch.testing.assert_close(value_and_gradient(loss, logits, labels), value_and_gradient(documented, logits, labels))


@pytest.mark.parametrize("loss", FUNCTIONS)
def test_function_and_class_have_the_same_options(loss: type[torch.nn.Module]) -> None:
    assert list(options_of(loss).items()) == list(options_of(FUNCTIONS[loss]).items())


@pytest.mark.parametrize("function", DEFAULTS)
def test_defaults_are_those_of_the_paper_and_documented(function: Callable[..., Any]) -> None:
    options = options_of(function)
    assert options == {**DEFAULTS[function], "ignore_index": None}
    arguments = (inspect.getdoc(function) or "").split("Args:\n")[1].split("\n\n")[0]
    documented = re.findall(r"^    (\w+): (?:(?!^    \w).)*?Default:\s+`(\S+)`\.$", arguments, re.DOTALL | re.MULTILINE)
    assert documented == [(name, repr(default).replace("'", '"')) for name, default in options.items()]


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (NACLLoss, {"prior": "max", "kernel_size": 5, "penalty": "l2", "padding": "background", "penalty_weight": 0.3}),
        (NACLLoss, {"prior": "gaussian", "sigma": 1.0, "constraint": "softmax", "ignore_index": 1}),
        (SVLSLoss, {"kernel_size": 5, "sigma": 1.0, "ignore_index": 1}),
        (MbLSLoss, {"margin": 0.5, "penalty_weight": 0.3, "ignore_index": 1}),
        (EntropyPenaltyLoss, {"penalty_weight": 0.3, "ignore_index": 1}),
        (LabelSmoothingLoss, {"alpha": 0.3, "ignore_index": 1}),
        (FocalLoss, {"gamma": 2.0, "ignore_index": 1}),
        (L1ACELoss, {"num_bins": 7, "ignore_empty_classes": False, "ignore_index": 1}),
        (L1ACEDiceCELoss, {"penalty_weight": 0.3, "num_bins": 7, "ignore_empty_classes": False, "ignore_index": 1}),
    ],
)
def test_class_passes_its_options_to_the_function(loss: type[torch.nn.Module], options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 4, 6, 5, generator=generator)
    labels = torch.randint(4, (2, 6, 5), generator=generator)
    assert torch.equal(loss(**options)(logits, labels), FUNCTIONS[loss](logits, labels, **options))
