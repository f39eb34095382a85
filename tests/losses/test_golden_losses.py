"""Every loss against the values that the authors' published code gives."""

from __future__ import annotations

import re

import monai.losses
import numpy as np
import pytest
import torch
from torch import nn

from calib_components.losses import (
    EntropyPenaltyLoss,
    FocalLoss,
    LabelSmoothingLoss,
    MbLSLoss,
    NACLLoss,
    SVLSLoss,
)

BASELINES = {
    "focal_gamma": FocalLoss,
    "ecp_lambda": EntropyPenaltyLoss,
    "ls_alpha": LabelSmoothingLoss,
    "svls_sigma": lambda sigma: SVLSLoss(sigma=sigma),
    "mbls_margin": MbLSLoss,
}


def loss_of(setting: str, padding: str) -> nn.Module:
    """Reads the name of a setting, such as `nacl_mean_k3_l1_logits` or `mbls_margin5`."""
    if setting == "ce_dice":
        return monai.losses.DiceCELoss(to_onehot_y=True, softmax=True)
    if setting.startswith("nacl"):
        _, prior, kernel, penalty, constraint = setting.split("_")
        return NACLLoss(prior, int(kernel[1:]), penalty=penalty, constraint=constraint, padding=padding)
    name, value = re.fullmatch(r"([a-z_]+)([0-9.]+)", setting).groups()
    return BASELINES[name](float(value))


@pytest.mark.parametrize(
    ("file", "padding"),
    [("losses_k4.npz", "replicate"), ("losses_k4.npz", "background"), ("losses_k4_border.npz", "background")],
)
def test_every_setting_gives_the_golden_loss_and_gradient(golden, loss_and_grad, file, padding):
    values = golden(file)
    logits, labels = torch.tensor(values["logits"]), torch.tensor(values["labels"]).unsqueeze(1)
    settings = [key.removeprefix("loss/") for key in values if key.startswith("loss/")]
    assert len(settings) == 60
    for setting in settings:
        loss, grad = loss_and_grad(loss_of(setting, padding), logits, labels)
        np.testing.assert_allclose(loss, values[f"loss/{setting}"], rtol=0, atol=1e-5, err_msg=setting)
        np.testing.assert_allclose(grad, values[f"grad/{setting}"], rtol=0, atol=1e-5, err_msg=setting)
