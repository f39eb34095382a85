"""Values and gradients of the losses against golden files made with the authors' published code."""

from __future__ import annotations

import monai.losses
import numpy as np
import pytest
import torch

from calib_components.losses import (
    EntropyPenaltyLoss,
    FocalLoss,
    LabelSmoothingLoss,
    MbLSLoss,
    NACLLoss,
    SVLSLoss,
)
from tests.helpers import SHARED

GOLDEN = SHARED / "golden"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden files in {GOLDEN}")
# With the padding that NACL needs to give these values: any, if only background touches the border.
FILES = [
    ("losses_k4.npz", "replicate"),
    ("losses_k4.npz", "background"),
    ("losses_k4_border.npz", "background"),
]


def loss_of(name: str, padding: str) -> torch.nn.Module:
    """The loss that an entry of a golden file was made with."""
    kind, *settings = name.split("_")
    if kind == "nacl":
        prior, size, penalty, constraint = settings
        return NACLLoss(
            prior=prior,
            kernel_size=int(size[1:]),
            penalty=penalty,
            constraint=constraint,
            padding=padding,
        )
    if kind == "ce":
        return monai.losses.DiceCELoss(to_onehot_y=True, softmax=True)
    option, loss = {
        "focal": ("gamma", FocalLoss),
        "ecp": ("penalty_weight", EntropyPenaltyLoss),
        "ls": ("alpha", LabelSmoothingLoss),
        "svls": ("sigma", SVLSLoss),
        "mbls": ("margin", MbLSLoss),
    }[kind]
    return loss(**{option: float(settings[0].lstrip("abcdefghijklmnopqrstuvwxyz"))})


def names(file: str) -> list[str]:
    return [key.removeprefix("loss/") for key in np.load(GOLDEN / file) if key.startswith("loss/")]


@pytest.mark.parametrize(
    ("file", "padding", "name"),
    [
        (file, padding, name)
        for file, padding in FILES
        for name in (names(file) if GOLDEN.is_dir() else [])
    ],
)
def test_value_and_gradient(file: str, padding: str, name: str) -> None:
    golden = np.load(GOLDEN / file)
    logits = torch.tensor(golden["logits"], requires_grad=True)
    loss = loss_of(name, padding)(logits, torch.tensor(golden["labels"]).unsqueeze(1))
    loss.backward()
    assert loss.item() == pytest.approx(golden[f"loss/{name}"].item(), abs=1e-5)
    np.testing.assert_allclose(logits.grad, golden[f"grad/{name}"], atol=1e-5, rtol=0)
