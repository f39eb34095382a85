"""Properties of every loss: forms of target, types, layouts, ignored voxels, gradients and errors."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor

from calib_components.losses import (
    EntropyPenaltyLoss,
    FocalLoss,
    L1ACEDiceCELoss,
    L1ACELoss,
    LabelSmoothingLoss,
    MbLSLoss,
    NACLLoss,
    SVLSLoss,
    nacl_loss,
    neighbor_prior,
    slabs,
)
from calib_components.losses.priors import PRIORS

LOSSES: dict[str, Callable[..., torch.nn.Module]] = {
    **{f"nacl_{prior}": lambda prior=prior, **options: NACLLoss(prior=prior, **options) for prior in PRIORS},
    "nacl_softmax_l2": lambda **options: NACLLoss(constraint="softmax", penalty="l2", **options),
    "svls": SVLSLoss,
    "mbls": lambda **options: MbLSLoss(margin=0.5, **options),
    "ecp": EntropyPenaltyLoss,
    "ls": LabelSmoothingLoss,
    "focal": FocalLoss,
    "l1_ace": L1ACELoss,
    "l1_ace_dice_ce": L1ACEDiceCELoss,
}
SOFT = ("nacl_mean", "nacl_gaussian", "nacl_softmax_l2", "svls", "mbls", "ecp", "ls", "l1_ace", "l1_ace_dice_ce")
SHAPES = [(2, 4, 6, 5), (1, 3, 4, 5, 3)]
every_loss = pytest.mark.parametrize("name", LOSSES)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])


def example(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and class indices `(B, 1, *S)`; the last class is absent."""
    generator = torch.Generator().manual_seed(0)
    batch, classes, *space = shape
    logits = 3 * torch.randn(shape, generator=generator)
    return logits, torch.randint(classes - 1, (batch, 1, *space), generator=generator)


@every_loss
@every_shape
def test_all_forms_of_class_indices_are_equivalent(name: str, shape: tuple[int, ...]) -> None:
    logits, target = example(shape)
    loss = LOSSES[name]()
    expected = loss(logits, target)
    assert expected.shape == ()
    for form in (
        target[:, 0],
        target.to(torch.uint8),
        target.double(),
        target.half(),
        MetaTensor(target),
        target.transpose(-1, -2).contiguous().transpose(-1, -2),
    ):
        torch.testing.assert_close(loss(logits, form), expected)
    layout = torch.channels_last if logits.ndim == 4 else torch.channels_last_3d
    strided = logits.transpose(-1, -2).contiguous().transpose(-1, -2)
    for form in (MetaTensor(logits), logits.to(memory_format=layout), strided):
        given = loss(form, target)
        torch.testing.assert_close(given, expected)
        assert type(given) is torch.Tensor


@pytest.mark.parametrize("name", SOFT)
@every_shape
def test_one_hot_probabilities_equal_class_indices(name: str, shape: tuple[int, ...]) -> None:
    logits, target = example(shape)
    one_hot = F.one_hot(target[:, 0], shape[1]).movedim(-1, 1).float()
    torch.testing.assert_close(LOSSES[name]()(logits, one_hot), LOSSES[name]()(logits, target))


@pytest.mark.parametrize("name", SOFT)
def test_probabilities_of_two_classes(name: str) -> None:
    logits, target = example((2, 2, 6, 5))
    one_hot = F.one_hot(target[:, 0], 2).movedim(-1, 1)
    torch.testing.assert_close(LOSSES[name]()(logits, one_hot), LOSSES[name]()(logits, target))


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in SOFT])
def test_probabilities_are_an_error_where_undefined(name: str) -> None:
    logits, target = example(SHAPES[0])
    with pytest.raises(ValueError, match=r"target: expected class indices .* got probabilities"):
        LOSSES[name]()(logits, F.one_hot(target[:, 0], 4).movedim(-1, 1).float())


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    logits, target = example(SHAPES[0])
    half = logits.to(dtype).requires_grad_()
    loss = LOSSES[name]()(half, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, LOSSES[name]()(half.detach().float(), target))
    loss.backward()
    assert half.grad.dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(LOSSES[name]()(half, target), loss)


@every_loss
@every_shape
def test_gradient(name: str, shape: tuple[int, ...]) -> None:
    logits, target = example(shape)
    target[0, 0, 0, 0] = 7
    loss = LOSSES[name](ignore_index=7)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits.double().requires_grad_())


@every_loss
def test_second_derivative(name: str) -> None:
    logits, target = example((2, 3, 3, 2))
    target[0, 0, 0, 0] = 7
    loss = LOSSES[name](ignore_index=7)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, target), logits.double().requires_grad_())


@every_loss
@pytest.mark.parametrize("shape", [(3, 4, 6, 5), (2, 3, 4, 5, 3)], ids=["2d", "3d"])
@pytest.mark.parametrize("slab", [1, 2**7])
def test_slabs_of_rows_or_images_equal_the_whole(
    name: str, shape: tuple[int, ...], slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, target = example(shape)
    loss = LOSSES[name](ignore_index=1)
    expected = value_and_gradient(loss, logits, target)
    monkeypatch.setattr(slabs, "CPU_SLAB_OF_A_THREAD", slab)
    parts = list(slabs.slabs(logits.shape, logits.device))
    assert len(parts) > 1
    torch.testing.assert_close(value_and_gradient(loss, logits, target), expected)
    torch.testing.assert_close(loss(logits, target), expected[0])
    if name in SOFT:
        soft = F.one_hot(target[:, 0], shape[1]).movedim(-1, 1).float()
        in_slabs = value_and_gradient(LOSSES[name](), logits, soft)
        torch.testing.assert_close(in_slabs, value_and_gradient(LOSSES[name](), logits, target))


def test_a_retained_graph_gives_gradients_of_their_own() -> None:
    logits, target = example(SHAPES[0])
    logits.requires_grad_()
    value = NACLLoss()(logits, target)
    (first,) = torch.autograd.grad(value, logits, retain_graph=True)
    (second,) = torch.autograd.grad(value, logits, 2 * torch.ones(()))
    torch.testing.assert_close(second, 2 * first)


@every_loss
def test_ignored_voxels_affect_neither_value_nor_gradient(name: str) -> None:
    logits, target = example(SHAPES[0])
    target[:, :, :, 3:] = 255
    loss = LOSSES[name](ignore_index=255)
    expected = loss(logits, target)
    other = logits.clone()
    other[..., 3:] = 50.0
    torch.testing.assert_close(loss(other, target), expected)
    other.requires_grad_()
    loss(other, target).backward()
    assert (other.grad[..., 3:] == 0).all()
    if not name.startswith(("nacl", "svls")):  # these depend on neighbours, and cropping moves the border
        torch.testing.assert_close(LOSSES[name]()(logits[..., :3], target[..., :3]), expected)


@every_loss
def test_loss_is_zero_if_every_voxel_is_ignored(name: str) -> None:
    logits, target = example(SHAPES[0])
    logits.requires_grad_()
    loss = LOSSES[name](ignore_index=0)(logits, torch.zeros_like(target))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


@every_loss
def test_a_single_voxel_that_counts(name: str) -> None:
    logits, _ = example((1, 4, 1, 3))
    target = torch.tensor([[[[255, 2, 255]]]])
    expected = value_and_gradient(LOSSES[name](), logits[..., 1:2], target[..., 1:2])
    value, gradient = value_and_gradient(LOSSES[name](ignore_index=255), logits, target)
    torch.testing.assert_close((value, gradient[..., 1:2]), expected)


def value_and_gradient(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], logits: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits.detach().requires_grad_()
    value = loss(logits, target)
    return value.detach(), torch.autograd.grad(value, logits)[0]


@every_loss
def test_compiled_equals_eager(name: str) -> None:
    logits, target = example(SHAPES[0])
    loss = LOSSES[name](ignore_index=1)
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(value_and_gradient(compiled, logits, target), value_and_gradient(loss, logits, target))


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compiled_with_inductor() -> None:
    logits, target = example(SHAPES[1])
    torch._dynamo.reset()
    compiled = torch.compile(NACLLoss(), fullgraph=True)
    torch.testing.assert_close(
        value_and_gradient(compiled, logits, target), value_and_gradient(NACLLoss(), logits, target)
    )


@every_shape
@pytest.mark.parametrize("penalty", ["l1", "l2"])
@pytest.mark.parametrize("constraint", ["logits", "softmax"])
@pytest.mark.parametrize("soft", [False, True])
def test_nacl_with_every_penalty_and_constraint(
    shape: tuple[int, ...], penalty: str, constraint: str, soft: bool
) -> None:
    logits, target = example(shape)
    if soft:
        target = torch.randn(shape, generator=torch.Generator().manual_seed(1)).softmax(1)

    def definition(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        constrained = logits if constraint == "logits" else logits.softmax(1)
        difference = neighbor_prior(target, shape[1]) - constrained
        distance = difference.abs() if penalty == "l1" else difference.square()
        return F.cross_entropy(logits, target if soft else target[:, 0]) + 0.1 * distance.mean()

    loss = NACLLoss(penalty=penalty, constraint=constraint)
    torch.testing.assert_close(value_and_gradient(loss, logits, target), value_and_gradient(definition, logits, target))


@every_shape
def test_losses_without_their_extra_term_equal_cross_entropy(shape: tuple[int, ...]) -> None:
    logits, target = example(shape)
    expected = value_and_gradient(lambda x, y: F.cross_entropy(x, y[:, 0], ignore_index=1), logits, target)
    for loss in (
        NACLLoss(penalty_weight=0.0, ignore_index=1),
        MbLSLoss(penalty_weight=0.0, ignore_index=1),
        EntropyPenaltyLoss(penalty_weight=0.0, ignore_index=1),
        LabelSmoothingLoss(alpha=0.0, ignore_index=1),
        FocalLoss(gamma=0.0, ignore_index=1),
    ):
        torch.testing.assert_close(value_and_gradient(loss, logits, target), expected)


@every_shape
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("options", [{}, {"kernel_size": 5, "sigma": 1.0, "padding": "background"}])
def test_nacl_with_every_prior(shape: tuple[int, ...], prior: str, options: dict[str, Any]) -> None:
    logits, target = example(shape)
    distance = (neighbor_prior(target, shape[1], prior, **options) - logits).abs().mean()
    expected = F.cross_entropy(logits, target[:, 0]) + 0.1 * distance
    torch.testing.assert_close(NACLLoss(prior, **options)(logits, target), expected)


@every_shape
@pytest.mark.parametrize("soft", [False, True])
def test_label_smoothing_equals_cross_entropy_with_a_smoothed_target(shape: tuple[int, ...], soft: bool) -> None:
    logits, target = example(shape)
    hard = torch.randn(shape).softmax(1) if soft else F.one_hot(target[:, 0], shape[1]).movedim(-1, 1).float()
    expected = F.cross_entropy(logits, 0.7 * hard + 0.3 / shape[1])
    torch.testing.assert_close(LabelSmoothingLoss(0.3)(logits, hard if soft else target), expected)


@every_shape
@pytest.mark.parametrize("options", [{}, {"kernel_size": 5, "sigma": 1.0}])
def test_svls_equals_cross_entropy_with_the_gaussian_prior(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    logits, target = example(shape)
    expected = F.cross_entropy(logits, neighbor_prior(target, shape[1], "gaussian", **options))
    torch.testing.assert_close(SVLSLoss(**options)(logits, target), expected)


def test_svls_of_a_constant_label_map_equals_cross_entropy() -> None:
    logits, target = example(SHAPES[0])
    target = torch.full_like(target, 2)
    torch.testing.assert_close(SVLSLoss()(logits, target), F.cross_entropy(logits, target[:, 0]))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 3.0])
def test_focal_gradient_is_finite_at_probability_one(gamma: float) -> None:
    logits = torch.tensor([200.0, -200.0]).view(1, 2, 1, 1).expand(1, 2, 1, 2)
    value, grad = value_and_gradient(FocalLoss(gamma), logits, torch.tensor([[[[0, 1]]]]))
    assert value.isfinite()
    assert grad.isfinite().all()
    assert (grad[..., 0] == 0).all()


def test_a_negative_ignore_index_works_with_unsigned_labels() -> None:
    logits, target = example(SHAPES[0])
    expected = NACLLoss()(logits, target)
    torch.testing.assert_close(NACLLoss(ignore_index=-100)(logits, target.to(torch.uint8)), expected)


def test_values_by_hand() -> None:
    """Two voxels side by side, two classes, logits (0, log 3): softmax (1/4, 3/4); labels 1 and 0."""
    logits = torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1).expand(1, 2, 1, 2)
    target = torch.tensor([1, 0]).view(1, 1, 1, 2)
    ce = (-math.log(3 / 4) - math.log(1 / 4)) / 2
    assert FocalLoss(gamma=2)(logits, target).item() == pytest.approx(
        (-(1 / 16) * math.log(3 / 4) - (9 / 16) * math.log(1 / 4)) / 2
    )
    entropy = -(1 / 4 * math.log(1 / 4) + 3 / 4 * math.log(3 / 4))
    assert EntropyPenaltyLoss(0.1)(logits, target).item() == pytest.approx(ce - 0.1 * entropy / 2)
    ls_first_voxel = -0.8 * math.log(3 / 4) - 0.1 * math.log(3 / 4) - 0.1 * math.log(1 / 4)
    assert LabelSmoothingLoss(0.2)(logits[..., :1], target[..., :1]).item() == pytest.approx(ls_first_voxel)
    assert MbLSLoss(margin=1.0)(logits, target).item() == pytest.approx(ce + 0.1 * (math.log(3) - 1) / 2)
    # Window with replicated border: two thirds the voxel's own label, one third its neighbour's.
    distance = (1 / 3 + (math.log(3) - 2 / 3) + 2 / 3 + (math.log(3) - 1 / 3)) / 4
    assert NACLLoss()(logits, target).item() == pytest.approx(ce + 0.1 * distance)


LOGITS, TARGET = example(SHAPES[0])


@every_loss
@pytest.mark.parametrize(
    ("input", "target", "error", "message"),
    [
        (LOGITS, TARGET[:, :, :4], ValueError, "target: expected shape .* got"),
        (LOGITS[0], TARGET[0], ValueError, "input: expected logits of shape"),
        (LOGITS[:, :1], TARGET, ValueError, "input: expected logits of shape .* with N >= 2"),
        (LOGITS.long(), TARGET, TypeError, "input: expected floating-point logits"),
        (LOGITS, TARGET.numpy(), TypeError, "target: expected a torch.Tensor, got ndarray"),
        (LOGITS, TARGET.cfloat(), TypeError, "target: expected class indices or probabilities"),
        (LOGITS, TARGET + 2, ValueError, "class indices from 0 to 3"),
        (LOGITS, TARGET - 1, ValueError, "class indices from 0 to 3"),
        (LOGITS, TARGET + 0.5, ValueError, "whole numbers"),
        (LOGITS.masked_fill(LOGITS > 5, math.nan), TARGET, ValueError, "finite"),
        (LOGITS.masked_fill(LOGITS > 5, math.inf), TARGET, ValueError, "finite"),
        (LOGITS, TARGET.float().masked_fill(TARGET == 1, math.nan), ValueError, "whole numbers"),
    ],
)
def test_invalid_arguments(name: str, input: torch.Tensor, target: torch.Tensor, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        LOSSES[name]()(input, target)


@pytest.mark.parametrize("name", SOFT)
def test_invalid_probabilities(name: str) -> None:
    with pytest.raises(ValueError, match="sum over the classes is 1"):
        LOSSES[name]()(LOGITS, torch.full_like(LOGITS, 0.5))
    with pytest.raises(ValueError, match="probabilities of at least 0, got values from -"):
        LOSSES[name]()(LOGITS, LOGITS)
    with pytest.raises(ValueError, match="ignore_index: expected None with probabilities as target, got 3"):
        LOSSES[name](ignore_index=3)(LOGITS, LOGITS.softmax(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": "l3"}, "penalty: expected one of .* got 'l3'"),
        ({"constraint": "probability"}, "constraint: expected one of .* got 'probability'"),
        ({"kernel_size": 2}, "kernel_size: expected an odd number"),
        ({"penalty_weight": -0.1}, "penalty_weight: expected a number of at least 0, got -0.1"),
    ],
)
def test_invalid_options_of_the_functional_form(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nacl_loss(LOGITS, TARGET, **options)


def test_label_out_of_range_is_an_error_in_compiled_code() -> None:
    logits, target = example(SHAPES[0])
    torch._dynamo.reset()
    compiled = torch.compile(NACLLoss(), backend="aot_eager", fullgraph=True)
    with pytest.raises(ValueError, match="target: expected class indices from 0 to 3, got values from 2 to 4"):
        compiled(logits, target + 2)
    with pytest.raises(ValueError, match=r"input: expected finite logits .*, got values from nan to nan"):
        compiled(logits * math.nan, target)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_label_out_of_range_does_not_end_the_process_with_inductor() -> None:
    """In a process of its own with two threads: an assertion in a parallel loop of the compiled code would abort it."""
    code = """
import torch
from calib_components.losses import NACLLoss
torch.set_num_threads(2)
logits, labels = torch.randn(4, 4, 128, 128, requires_grad=True), torch.full((4, 1, 128, 128), 4)
try:
    torch.compile(NACLLoss(), fullgraph=True)(logits, labels)
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "target: expected class indices from 0 to 3, got values from 4 to 4\n"
