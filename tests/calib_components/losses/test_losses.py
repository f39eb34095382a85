"""Every loss equals its formula in plain PyTorch, in value and gradient, for all forms of input and
target.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.losses import DiceCELoss, DiceLoss

from calib_components.losses import (
    LOSSES,
    CalibrationLoss,
    EntropyPenaltyLoss,
    FocalLoss,
    L1ACEDiceCELoss,
    L1ACELoss,
    LabelSmoothingLoss,
    MbLSLoss,
    NACLLoss,
    SVLSLoss,
    dice_ce,
    neighbor_prior,
    slabs,
)
from calib_components.losses.priors import PRIORS
from calib_components.metrics import calibration_bins

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
SHAPES = [(3, 4, 6, 5), (2, 3, 4, 5, 3)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])


def nacl(
    x: torch.Tensor,
    q: torch.Tensor,
    prior: str = "mean",
    constraint: str = "logits",
    power: int = 1,
    **options: Any,
):
    """Cross-entropy and 0.3 times the mean distance of logits or softmax from the prior; the target
    is one-hot.
    """
    labels = q if prior in ("mean", "gaussian") else q.argmax(1)
    difference = neighbor_prior(labels, q.shape[1], prior, **options) - (
        x if constraint == "logits" else x.softmax(1)
    )
    return F.cross_entropy(x, q) + 0.3 * (difference.abs() ** power).mean()


def entropy_penalty(x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    s = x.softmax(1)
    return F.cross_entropy(x, q) - 0.3 * (-s * s.log()).mean()


def focal(x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    s = (x.softmax(1) * q).sum(1)
    return ((1 - s) ** 2 * -s.log()).mean()


def l1_ace(x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """The mean over the bins that are not empty of the gap between confidence and accuracy."""
    p, y = x.softmax(1).flatten(2), q.flatten(2)
    in_bin = F.one_hot((p * 7).ceil().long().sub(1).clamp(min=0), 7)
    count = in_bin.sum(2)
    gap = (in_bin * (p - y).unsqueeze(-1)).sum(2).abs() / count.clamp(min=1)
    return (gap.sum(-1) / (count > 0).sum(-1) * y.any(2)).mean()


def mbls(x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(x, q) + 0.3 * F.relu(x.amax(1, keepdim=True) - x - 0.5).mean()


FORMULAS: dict[str, tuple[Callable[..., CalibrationLoss], Loss]] = {
    **{
        f"nacl_{prior}": (
            lambda prior=prior, **o: NACLLoss(prior=prior, penalty_weight=0.3, **o),
            lambda x, q, prior=prior: nacl(x, q, prior),
        )
        for prior in PRIORS
    },
    "nacl_softmax_l2": (
        lambda **o: NACLLoss(constraint="softmax", penalty="l2", penalty_weight=0.3, **o),
        lambda x, q: nacl(x, q, constraint="softmax", power=2),
    ),
    "nacl_5x5": (
        lambda **o: NACLLoss("gaussian", kernel_size=5, sigma=1.0, penalty_weight=0.3, **o),
        lambda x, q: nacl(x, q, "gaussian", kernel_size=5, sigma=1.0),
    ),
    "nacl_background": (
        lambda **o: NACLLoss(padding="background", penalty_weight=0.3, **o),
        lambda x, q: nacl(x, q, padding="background"),
    ),
    "svls": (
        lambda **o: SVLSLoss(sigma=1.0, **o),
        lambda x, q: F.cross_entropy(x, neighbor_prior(q, q.shape[1], "gaussian", sigma=1.0)),
    ),
    "mbls": (lambda **o: MbLSLoss(0.5, 0.3, **o), mbls),
    "entropy_penalty": (lambda **o: EntropyPenaltyLoss(0.3, **o), entropy_penalty),
    "label_smoothing": (
        lambda **o: LabelSmoothingLoss(0.3, **o),
        lambda x, q: F.cross_entropy(x, 0.7 * q + 0.3 / q.shape[1]),
    ),
    "focal": (lambda **o: FocalLoss(2.0, **o), focal),
    "l1_ace": (lambda **o: L1ACELoss(7, **o), l1_ace),
    "dice_ce": (
        lambda **o: dice_ce.DiceCELoss(0.3, **o),
        lambda x, q: F.cross_entropy(x, q) + 0.3 * DiceLoss(softmax=True)(x, q),
    ),
    "l1_ace_dice_ce": (
        lambda **o: L1ACEDiceCELoss(0.3, 7, **o),
        lambda x, q: DiceCELoss(softmax=True)(x, q) + 0.3 * l1_ace(x, q),
    ),
}
every_loss = pytest.mark.parametrize("name", FORMULAS)


def test_each_loss_has_a_formula_here() -> None:
    assert set(LOSSES.values()) <= {type(make()) for make, _ in FORMULAS.values()}


def example(shape: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits in float64 and class indices `(B, 1, *S)`; the last class is absent."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return logits, torch.randint(shape[1] - 1, (shape[0], 1, *shape[2:]), generator=generator)


def one_hot(target: torch.Tensor, num_classes: int) -> torch.Tensor:
    return F.one_hot(target[:, 0], num_classes).movedim(-1, 1).double()


def value_and_gradient(
    loss: Loss, logits: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits.detach().requires_grad_()
    value = loss(logits, target)
    return value.detach(), torch.autograd.grad(value, logits)[0]


def assert_same(loss: Loss, logits: torch.Tensor, target: torch.Tensor, expected: Any) -> None:
    """Value and gradient are expected ones, up to rounding in float64."""
    torch.testing.assert_close(
        value_and_gradient(loss, logits, target), expected, rtol=1e-7, atol=1e-7
    )


@every_loss
@every_shape
def test_value_and_gradient_are_those_of_the_formula(name: str, shape: tuple[int, ...]) -> None:
    make, formula = FORMULAS[name]
    logits, target = example(shape)
    q = one_hot(target, shape[1])
    expected = value_and_gradient(formula, logits, q)
    assert_same(make(), logits, target, expected)
    if make().accepts_probabilities:
        assert_same(make(), logits, q, expected)
        soft = example(shape, seed=1)[0].softmax(1)
        assert_same(make(), logits, soft, value_and_gradient(formula, logits, soft))
    else:
        with pytest.raises(ValueError, match=r"target .*probabilities"):
            make()(logits, q)


@every_loss
@every_shape
def test_all_forms_of_logits_and_class_indices_are_equivalent(
    name: str, shape: tuple[int, ...]
) -> None:
    logits, target = example(shape)
    loss = FORMULAS[name][0]()
    expected = loss(logits, target)
    assert expected.shape == ()
    assert type(loss(MetaTensor(logits), MetaTensor(target))) is torch.Tensor
    types = torch.uint8, torch.int16, torch.float64, torch.float16
    forms = [target[:, 0], MetaTensor(target), target.mT.contiguous().mT]
    for form in (*forms, *(target.to(dtype) for dtype in types)):
        torch.testing.assert_close(loss(logits, form), expected)
    layout = torch.channels_last if logits.ndim == 4 else torch.channels_last_3d
    for form in (logits.to(memory_format=layout), logits.mT.clone().mT):
        torch.testing.assert_close(loss(form, target), expected)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    logits, target = example(SHAPES[0])
    loss, low = FORMULAS[name][0](), logits.to(dtype)
    value, gradient = value_and_gradient(loss, low, target)
    assert (value.dtype, gradient.dtype) == (torch.float32, dtype)
    exact, exact_gradient = value_and_gradient(loss, low.double(), target)
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        gradient.double(), exact_gradient, rtol=2 * torch.finfo(dtype).eps, atol=1e-6
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(low, target), value)


@every_loss
@every_shape
@pytest.mark.parametrize("size", [1, 100])
def test_slabs_of_rows_equal_the_whole(
    name: str, shape: tuple[int, ...], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, target = example(shape)
    loss = FORMULAS[name][0](ignore_index=1)
    expected = value_and_gradient(loss, logits, target)
    monkeypatch.setattr(slabs, "CPU_SLAB", size)
    assert len(slabs.slabs_of(logits)) > 1
    assert_same(loss, logits, target, expected)
    torch.testing.assert_close(loss(logits, target), expected[0])


@every_loss
def test_ignored_voxels_affect_neither_value_nor_gradient(name: str) -> None:
    logits, target = example(SHAPES[0])
    target[..., 3:] = 255
    loss = FORMULAS[name][0](ignore_index=255)
    expected, gradient = value_and_gradient(loss, logits, target)
    assert (gradient[..., 3:] == 0).all()
    torch.testing.assert_close(
        loss(torch.cat([logits[..., :3], torch.full_like(logits[..., 3:], 50.0)], -1), target),
        expected,
    )
    if not name.startswith(("nacl", "svls")):  # cropping moves their border
        torch.testing.assert_close(loss(logits[..., :3], target[..., :3]), expected)
    value, gradient = value_and_gradient(loss, logits, torch.full_like(target, 255))
    assert value == 0
    assert (gradient == 0).all()


def test_a_retained_graph_gives_gradients_of_their_own() -> None:
    logits, target = example(SHAPES[0])
    value = NACLLoss()(logits.requires_grad_(), target)
    (first,) = torch.autograd.grad(value, logits, retain_graph=True)
    (second,) = torch.autograd.grad(value, logits, 2 * torch.ones(()).double())
    torch.testing.assert_close(second, 2 * first)


def test_second_derivatives_are_refused() -> None:
    logits, target = example(SHAPES[0])
    value = NACLLoss()(logits.requires_grad_(), target)
    with pytest.raises(NotImplementedError, match="create_graph=True"):
        torch.autograd.grad(value, logits, create_graph=True)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 3.0])
def test_focal_gradient_is_finite_at_probability_one(gamma: float) -> None:
    logits = torch.tensor([200.0, -200.0]).view(1, 2, 1, 1).expand(1, 2, 1, 2)
    value, gradient = value_and_gradient(FocalLoss(gamma), logits, torch.tensor([[[[0, 1]]]]))
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert (gradient[..., 0] == 0).all()


@pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_l1_ace_is_that_of_the_metric(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    logits, labels = example(shape)
    logits, labels[0, 0, :2] = logits.to(dtype), 9
    bins = calibration_bins(
        logits.softmax(1), labels, 20, region="all", ignore_index=9, classwise=True
    )
    value = L1ACELoss(ignore_empty_classes=False, ignore_index=9)(logits, labels)
    torch.testing.assert_close(value, bins.average_error().mean().to(dtype))


def test_text_of_a_loss_has_its_options() -> None:
    assert repr(SVLSLoss(sigma=1.5)) == "SVLSLoss(kernel_size=3, sigma=1.5, ignore_index=None)"
    assert repr(NACLLoss("max", penalty_weight=0.5)) == (
        "NACLLoss(prior='max', kernel_size=3, sigma=2.0, penalty='l1', constraint='logits',"
        " penalty_weight=0.5, padding='replicate', ignore_index=None)"
    )
    for loss in LOSSES.values():
        assert repr(eval(repr(loss()), {loss.__name__: loss})) == repr(loss())


def test_defaults_are_those_of_the_papers() -> None:
    table = {
        NACLLoss: ["mean", 3, 2.0, "l1", "logits", 0.1, "replicate", None],
        SVLSLoss: [3, 2.0, None],
        MbLSLoss: [5.0, 0.1, None],
        EntropyPenaltyLoss: [0.1, None],
        LabelSmoothingLoss: [0.1, None],
        FocalLoss: [3.0, None],
        dice_ce.DiceCELoss: [1.0, None],
        L1ACELoss: [20, True, None],
        L1ACEDiceCELoss: [1.0, 20, True, None],
    }
    for loss, defaults in table.items():
        assert [
            option.default for option in inspect.signature(loss).parameters.values()
        ] == defaults
