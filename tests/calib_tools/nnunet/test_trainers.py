"""The trainers' losses against nnU-Net's own and against the definition; what nnU-Net does with the
trainers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerCELoss import nnUNetTrainerCELoss
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch import Tensor, nn

from calib_components import losses
from calib_components.errors import InputError
from calib_tools.nnunet.trainers.loss_trainers import TRAINERS
from tests.calib_tools.nnunet.made_up import (
    CPU,
    IGNORE,
    LABELS,
    REGIONS,
    dataset_of,
    make_trainer,
    plans_of,
)

WITH_IGNORE = {**LABELS, "ignore": IGNORE}
LOSSES: dict[str, Callable[..., nn.Module]] = {
    "NACL": partial(losses.NACLLoss, "mean", 3, penalty_weight=0.1),
    "SVLS": partial(losses.SVLSLoss, 3, 2.0),
    "MbLS": partial(losses.MbLSLoss, 5.0, 0.1),
    "Focal": partial(losses.FocalLoss, 3.0),
    "LabelSmoothing": partial(losses.LabelSmoothingLoss, 0.1),
    "EntropyPenalty": partial(losses.EntropyPenaltyLoss, 0.1),
}
NACL, NACL_DICE = TRAINERS["nnUNetTrainerNACL"], TRAINERS["nnUNetTrainerNACLDice"]


def outputs_and_targets(dimensions: int, ignored: float = 0.0) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of three resolutions and floating-point targets, of which a share is ignored."""
    generator = torch.Generator().manual_seed(dimensions)
    outputs, targets = [], []
    for side in (16, 8, 4):
        space = [side, side + 4, side + 2][:dimensions]
        outputs.append((3 * torch.randn(2, 3, *space, generator=generator)).requires_grad_())
        target = torch.randint(3, (2, 1, *space), generator=generator).float()
        targets.append(
            target.masked_fill(torch.rand(target.shape, generator=generator) < ignored, IGNORE)
        )
    return outputs, targets


def value_and_gradients(loss: Callable[..., Tensor], outputs: Any, targets: Any) -> list[Tensor]:
    value = loss(outputs, targets)
    leaves = outputs if isinstance(outputs, list) else [outputs]
    return [
        value.detach(),
        *torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True),
    ]


@pytest.mark.parametrize("with_dice", [False, True])
@pytest.mark.parametrize(("dimensions", "ignore"), [(2, True), (3, False)])
@pytest.mark.parametrize("deep_supervision", [False, True])
def test_without_a_penalty_the_loss_is_that_of_nnunet(
    with_dice: bool, dimensions: int, ignore: bool, deep_supervision: bool
) -> None:
    ours = type("WithoutPenalty", (NACL_DICE if with_dice else NACL,), {"penalty_weight": 0.0})
    outputs, targets = outputs_and_targets(dimensions, 0.3 * ignore)
    given = (outputs, targets) if deep_supervision else (outputs[0], targets[0])
    actual, expected = (
        value_and_gradients(
            make_trainer(
                trainer, plans_of(dimensions), WITH_IGNORE if ignore else LABELS, deep_supervision
            )._build_loss(),
            *given,
        )
        for trainer in (ours, nnUNetTrainer if with_dice else nnUNetTrainerCELoss)
    )
    assert expected[1].any()
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6 * float(other.abs().max()), rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("dimensions", "ignore"), [(2, False), (2, True), (3, True)])
def test_full_resolution_has_our_loss_and_lower_ones_cross_entropy(
    name: str, dimensions: int, ignore: bool
) -> None:
    labels: Mapping[str, Any] = WITH_IGNORE if ignore else LABELS
    outputs, targets = outputs_and_targets(dimensions, 0.3 * ignore)
    ours = LOSSES[name](ignore_index=IGNORE if ignore else None)

    def definition(outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        lower = F.cross_entropy(outputs[1], targets[1][:, 0].long(), ignore_index=IGNORE)
        # 1, 1/2 and 0, divided by their sum
        return 2 / 3 * ours(outputs[0], targets[0].long()) + 1 / 3 * lower

    loss = make_trainer(
        TRAINERS[f"nnUNetTrainer{name}"], plans_of(dimensions), labels
    )._build_loss()
    expected = value_and_gradients(definition, outputs, targets)
    for one, other in zip(value_and_gradients(loss, outputs, targets), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6 * float(other.abs().max()), rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_in_which_all_is_ignored_has_no_gradient(name: str) -> None:
    outputs, targets = outputs_and_targets(2, ignored=1.0)
    loss = make_trainer(TRAINERS[f"nnUNetTrainer{name}"], labels=WITH_IGNORE)._build_loss()
    value, *gradients = value_and_gradients(loss, outputs, targets)
    assert value.isfinite()
    assert not any(gradient.any() for gradient in gradients)


def test_regions_are_refused() -> None:
    with pytest.raises(InputError, match="regions"):
        make_trainer(NACL, labels=REGIONS)._build_loss()


def test_nnunet_finds_each_trainer_and_one_of_five_epochs() -> None:
    names = [*LOSSES, "NACLDice"]
    assert TRAINERS.keys() == {
        f"nnUNetTrainer{name}{epochs}" for name in names for epochs in ("", "_5epochs")
    }
    for name in ("nnUNetTrainerSVLS", "nnUNetTrainerNACLDice_5epochs"):
        given = {
            "plans": {**plans_of(), "continue_training": False},
            "configuration": "2d",
            "fold": 3,
        }
        made = recursive_find_trainer_class_by_name(name)(
            **given, dataset_json=dataset_of(), device=CPU
        )
        assert (type(made).__name__, made.num_epochs) == (name, 5 if "5" in name else 1000)
        assert made.my_init_kwargs == {
            **given,
            "plans": plans_of(),
            "dataset_json": dataset_of(),
            "device": CPU,
        }
        assert made.output_folder_base.endswith(f"{name}__nnUNetPlans__2d")
