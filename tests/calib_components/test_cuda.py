"""On a GPU: same values and gradients as on the CPU, and errors that reach the user."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from calib_components.losses import (
    EntropyPenaltyLoss,
    FocalLoss,
    L1ACEDiceCELoss,
    L1ACELoss,
    LabelSmoothingLoss,
    MbLSLoss,
    NACLLoss,
    SVLSLoss,
)
from calib_components.losses.priors import PRIORS
from calib_components.metrics import BrierMetric, CECEMetric, DSCMetric, ECEMetric, HD95Metric, NLLMetric

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

LOSSES = [
    *(NACLLoss(prior=prior) for prior in PRIORS),
    NACLLoss(constraint="softmax", penalty="l2"),
    SVLSLoss(),
    MbLSLoss(),
    EntropyPenaltyLoss(),
    LabelSmoothingLoss(),
    FocalLoss(),
    L1ACELoss(),
    L1ACEDiceCELoss(),
]


def example() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 4, 12, 11, 10, generator=generator)
    return logits, torch.randint(4, (2, 1, 12, 11, 10), generator=generator)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_losses_equal_those_on_the_cpu(loss: torch.nn.Module) -> None:
    logits, target = example()
    results = []
    for device in ("cpu", "cuda"):
        inputs = logits.to(device).requires_grad_()
        value = loss(inputs, target.to(device))
        results.append((value.detach().cpu(), torch.autograd.grad(value, inputs)[0].cpu()))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_losses_under_autocast(loss: torch.nn.Module) -> None:
    logits, target = (tensor.cuda() for tensor in example())
    with torch.autocast("cuda", torch.float16):
        value = loss(logits.half(), target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(logits, target), rtol=1e-2, atol=1e-2)


def test_nacl_compiled() -> None:
    logits, target = (tensor.cuda() for tensor in example())
    torch.testing.assert_close(torch.compile(NACLLoss(), fullgraph=True)(logits, target), NACLLoss()(logits, target))


def test_label_out_of_range_is_an_error() -> None:
    """In a separate process, since a failed assertion makes the device unusable for the process."""
    code = (
        "import torch; from calib_components.losses import NACLLoss;"
        "NACLLoss()(torch.zeros(1, 2, 4, 4).cuda(), torch.full((1, 1, 4, 4), 2).cuda()); torch.cuda.synchronize()"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert "device-side assert" in done.stderr or "expected class indices" in done.stderr


@pytest.mark.parametrize("metric_type", [ECEMetric, CECEMetric, NLLMetric, BrierMetric, DSCMetric, HD95Metric])
def test_metrics_are_those_of_the_cpu(metric_type: type) -> None:
    logits, y = example()
    y_pred = logits.softmax(1)
    if metric_type in (DSCMetric, HD95Metric):
        y_pred = F.one_hot(y_pred.argmax(1), 4).movedim(-1, 1)
    values = []
    for device in ("cpu", "cuda"):
        metric = metric_type()
        metric(y_pred.to(device), y.to(device))
        values.append(metric.aggregate("none").cpu())
    torch.testing.assert_close(values[1], values[0], rtol=0, atol=1e-6)
