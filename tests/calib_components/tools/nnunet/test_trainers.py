"""The trainers' losses against nnU-Net's own and against the definition; what nnU-Net does with the trainers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerCELoss import nnUNetTrainerCELoss
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerDiceLoss import nnUNetTrainerDiceLoss
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerTopkLoss import nnUNetTrainerDiceTopK10Loss
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch import Tensor, nn

from calib_components.errors import InputError
from calib_components.losses import (
    EntropyPenaltyLoss,
    FocalLoss,
    LabelSmoothingLoss,
    MbLSLoss,
    NACLLoss,
    SVLSLoss,
)
from calib_components.tools.nnunet import COMMANDS
from calib_components.tools.nnunet.trainers.loss_trainers import (
    nnUNetTrainerEntropyPenalty,
    nnUNetTrainerFocal,
    nnUNetTrainerLabelSmoothing,
    nnUNetTrainerMbLS,
    nnUNetTrainerNACL,
    nnUNetTrainerNACLDice,
    nnUNetTrainerSVLS,
)
from tests.calib_components.tools.nnunet.made_up import (
    CPU,
    IGNORE,
    LABELS,
    REGIONS,
    dataset_of,
    make_trainer,
    plans_of,
)

WITH_IGNORE = {**LABELS, "ignore": IGNORE}
LOSSES: dict[type[nnUNetTrainer], Callable[[int | None], nn.Module]] = {
    nnUNetTrainerNACL: lambda ignore: NACLLoss("mean", 3, penalty_weight=0.1, ignore_index=ignore),
    nnUNetTrainerNACLDice: lambda ignore: NACLLoss("mean", 3, penalty_weight=0.1, ignore_index=ignore),
    nnUNetTrainerSVLS: lambda ignore: SVLSLoss(3, 2.0, ignore_index=ignore),
    nnUNetTrainerMbLS: lambda ignore: MbLSLoss(5.0, 0.1, ignore_index=ignore),
    nnUNetTrainerFocal: lambda ignore: FocalLoss(3.0, ignore_index=ignore),
    nnUNetTrainerLabelSmoothing: lambda ignore: LabelSmoothingLoss(0.1, ignore_index=ignore),
    nnUNetTrainerEntropyPenalty: lambda ignore: EntropyPenaltyLoss(0.1, ignore_index=ignore),
}
WEIGHTS = (2 / 3, 1 / 3, 0)  # 1, 1/2 and 0 for 1/4, divided by their sum


class NACLWithoutPenalty(nnUNetTrainerNACL):
    penalty_weight = 0.0


class NACLDiceWithoutPenalty(nnUNetTrainerNACLDice):
    penalty_weight = 0.0


SAME = [(NACLWithoutPenalty, nnUNetTrainerCELoss), (NACLDiceWithoutPenalty, nnUNetTrainer)]


def outputs_and_targets(dimensions: int, ignored: float = 0.0) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of three resolutions and floating-point targets, of which a share is ignored."""
    generator = torch.Generator().manual_seed(dimensions)
    outputs, targets = [], []
    for side in (16, 8, 4):
        space = [side, side + 4, side + 2][:dimensions]
        outputs.append((3 * torch.randn(2, 3, *space, generator=generator)).requires_grad_())
        target = torch.randint(3, (2, 1, *space), generator=generator).float()
        targets.append(target.masked_fill(torch.rand(target.shape, generator=generator) < ignored, IGNORE))
    return outputs, targets


def value_and_gradients(loss: Callable[..., Tensor], outputs: Any, targets: Any) -> tuple[Tensor, list[Tensor]]:
    value = loss(outputs, targets)
    leaves = outputs if isinstance(outputs, list) else [outputs]
    gradients = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    return value.detach(), list(gradients)


def check_equal(actual: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]]) -> None:
    torch.testing.assert_close(actual[0], expected[0], atol=1e-6, rtol=1e-6)
    for one, other in zip(actual[1], expected[1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-6 * float(other.abs().max()), rtol=1e-5)
    assert expected[1][0].any()


def labels_and_share(ignore: bool) -> tuple[Mapping[str, Any], float]:
    return (WITH_IGNORE, 0.3) if ignore else (LABELS, 0.0)


@pytest.mark.parametrize(("ours", "own"), SAME)
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("deep_supervision", [False, True])
def test_without_a_penalty_the_loss_is_that_of_nnunet(
    ours: type[nnUNetTrainer], own: type[nnUNetTrainer], dimensions: int, ignore: bool, deep_supervision: bool
) -> None:
    labels, share = labels_and_share(ignore)
    outputs, targets = outputs_and_targets(dimensions, share)
    given = (outputs, targets) if deep_supervision else (outputs[0], targets[0])
    plans = plans_of(dimensions)
    actual, expected = (
        value_and_gradients(make_trainer(trainer, plans, labels, deep_supervision)._build_loss(), *given)
        for trainer in (ours, own)
    )
    check_equal(actual, expected)


def dice(output: Tensor, target: Tensor, batch: bool, ignored: Tensor) -> Tensor:
    """nnU-Net's, of the foreground classes."""
    p = output.softmax(1).masked_fill(ignored, 0)
    truth = F.one_hot(target[:, 0].masked_fill(ignored[:, 0], 0).long(), 3).movedim(-1, 1).masked_fill(ignored, 0)
    axes = [*([0] if batch else []), *range(2, output.ndim)]
    overlap, size = (p * truth).sum(axes), (p + truth).sum(axes)
    scores = (2 * overlap + 1e-5) / (size + 1e-5)
    return -scores[..., 1:].mean()


@pytest.mark.parametrize("trainer", LOSSES)
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("ignore", [False, True])
def test_full_resolution_has_our_loss_and_lower_ones_cross_entropy(
    trainer: type[nnUNetTrainer], dimensions: int, ignore: bool
) -> None:
    labels, share = labels_and_share(ignore)
    outputs, targets = outputs_and_targets(dimensions, share)
    loss = make_trainer(trainer, plans_of(dimensions), labels)._build_loss()
    ours = LOSSES[trainer](IGNORE if ignore else None)

    def definition(outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        total = torch.zeros(())
        for index, weight in enumerate(WEIGHTS):
            output, target = outputs[index], targets[index]
            if index == 0:
                value = ours(output, target.long())
            else:
                value = F.cross_entropy(output, target[:, 0].long(), ignore_index=IGNORE)
            if trainer is nnUNetTrainerNACLDice:
                value = value + dice(output, target, dimensions == 2, target == IGNORE)
            total = total + weight * value
        return total

    actual = value_and_gradients(loss, outputs, targets)
    check_equal(actual, value_and_gradients(definition, outputs, targets))
    single = make_trainer(trainer, plans_of(dimensions), labels, deep_supervision=False)._build_loss()
    with_dice = dice(outputs[0], targets[0], dimensions == 2, targets[0] == IGNORE)
    expected = ours(outputs[0], targets[0]) + (with_dice if trainer is nnUNetTrainerNACLDice else 0)
    torch.testing.assert_close(single(outputs[0], targets[0]), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("trainer", LOSSES)
@pytest.mark.parametrize("deep_supervision", [False, True])
def test_a_batch_in_which_all_is_ignored_has_no_gradient(trainer: type[nnUNetTrainer], deep_supervision: bool) -> None:
    outputs, targets = outputs_and_targets(2, ignored=1.0)
    given = (outputs, targets) if deep_supervision else (outputs[0], targets[0])
    loss = make_trainer(trainer, labels=WITH_IGNORE, deep_supervision=deep_supervision)._build_loss()
    value, gradients = value_and_gradients(loss, *given)
    assert value.isfinite()
    assert all(not gradient.any() for gradient in gradients)


def test_a_lower_resolution_in_which_all_is_ignored_does_not_count() -> None:
    """As of scribbles, which a coarse grid misses."""
    outputs, targets = outputs_and_targets(2)
    targets[1].fill_(IGNORE)
    value = make_trainer(labels=WITH_IGNORE)._build_loss()(outputs, targets)
    torch.testing.assert_close(value, 2 / 3 * NACLLoss(ignore_index=IGNORE)(outputs[0], targets[0]))


@pytest.mark.parametrize("trainer", LOSSES)
def test_regions_are_refused(trainer: type[nnUNetTrainer]) -> None:
    made = make_trainer(trainer, labels=REGIONS)
    with pytest.raises(InputError) as caught:
        made._build_loss()
    assert str(caught.value) == (
        "labels in dataset.json: expected classes that exclude each other, got regions that overlap; "
        f"the loss of {trainer.__name__} is one of a softmax, and regions have a sigmoid each. Train with "
        "nnUNetTrainer and calibrate its checkpoint"
    )


def test_another_loss_that_ours_would_not_be_part_of_is_refused() -> None:
    class Combined(nnUNetTrainerNACLDice, nnUNetTrainerCELoss):
        """Without Dice, and so without a cross-entropy beside it."""

    class OnlyDice(nnUNetTrainerNACL, nnUNetTrainerDiceLoss):
        """Lower resolutions would have Dice in place of cross-entropy."""

    class TopK(nnUNetTrainerNACLDice, nnUNetTrainerDiceTopK10Loss):
        """Lower resolutions would have the cross-entropy of a tenth of the voxels."""

    for trainer, other in ((Combined, "RobustCrossEntropyLoss"), (OnlyDice, "MemoryEfficientSoftDiceLoss")):
        message = rf"^{trainer.__name__}: expected nnU-Net's cross-entropy .*, got {other}$"
        with pytest.raises(InputError, match=message):
            make_trainer(trainer)._build_loss()
    with pytest.raises(InputError, match=r"^TopK: expected nnU-Net's cross-entropy .*, got DC_and_topk_loss$"):
        make_trainer(TopK)._build_loss()


def test_cross_entropy_alone_may_be_replaced() -> None:
    class Combined(nnUNetTrainerNACL, nnUNetTrainerCELoss):
        """nnU-Net's own trainer without Dice."""

    loss = make_trainer(Combined)._build_loss()
    assert type(loss.full) is NACLLoss
    assert type(loss.lower) is RobustCrossEntropyLoss


@pytest.mark.parametrize("trainer", LOSSES)
def test_bfloat16_is_computed_in_float32(trainer: type[nnUNetTrainer]) -> None:
    made = make_trainer(trainer)
    loss = made._build_loss()
    image = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    _, targets = outputs_and_targets(2)
    targets = [F.interpolate(targets[0], size=side) for side in (32, 16, 8)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = made.network(image)
        value = loss(outputs, targets)
    assert {output.dtype for output in outputs} == {torch.bfloat16}
    torch.testing.assert_close(value, loss([output.float() for output in outputs], targets), atol=1e-2, rtol=1e-2)
    assert value.dtype == torch.float32
    value.backward()
    assert all(parameter.grad.isfinite().all() for parameter in made.network.decoder.seg_layers[-1].parameters())


@pytest.mark.parametrize("trainer", LOSSES)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_training_steps_lower_the_loss(trainer: type[nnUNetTrainer], dimensions: int) -> None:
    """One image of noise whose label is where it is bright."""
    made = make_trainer(trainer, plans_of(dimensions))
    made.loss = made._build_loss()
    sides = (32, 16, 8) if dimensions == 2 else (16, 8, 4)
    image = torch.randn(2, 1, *[sides[0]] * dimensions, generator=torch.Generator().manual_seed(0))
    label = 2 * (image > 0.5).float()
    targets = [F.interpolate(label, size=[side] * dimensions) for side in sides]
    losses = [float(made.train_step({"data": image, "target": targets})["loss"]) for _ in range(12)]
    assert losses[-1] < losses[0] - 0.1


def test_each_trainer_has_one_of_five_epochs_that_nnunet_finds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    COMMANDS["trainers"]()
    monkeypatch.setenv("nnUNet_extTrainer", capsys.readouterr().out.strip())
    plans, dataset = plans_of(), dataset_of()
    for trainer in LOSSES:
        for name, epochs in ((trainer.__name__, 1000), (f"{trainer.__name__}_5epochs", 5)):
            found = recursive_find_trainer_class_by_name(name)
            given = {"plans": {**plans, "continue_training": False}, "configuration": "2d", "fold": 3}
            made = found(**given, dataset_json=dataset, device=CPU)
            assert (found.__name__, made.num_epochs) == (name, epochs)
            assert made.my_init_kwargs == {**given, "plans": plans, "dataset_json": dataset, "device": CPU}
            assert made.output_folder_base.endswith(f"{name}__nnUNetPlans__2d")
