"""On a GPU: same values and gradients as on the CPU, and errors that reach the user."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from calib_components.losses import NACLLoss
from calib_components.metrics import (
    BrierMetric,
    CECEMetric,
    DSCMetric,
    ECEMetric,
    ExpectedDSCMetric,
    HD95Metric,
    NLLMetric,
    VolumeMetric,
)
from calib_components.metrics.base import CaseMetric
from calib_components.metrics.regions import REGIONS
from tests.calib_components.losses.test_losses import FORMULAS, every_loss, example
from tests.helpers import ACDC, make_prepared, make_weights, run_bundle

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def case() -> tuple[torch.Tensor, torch.Tensor]:
    logits, target = example((2, 4, 12, 11, 10))
    return logits.float(), target


@every_loss
def test_losses_equal_those_on_the_cpu(name: str) -> None:
    logits, target = case()
    loss = FORMULAS[name][0]()
    results = []
    for device in ("cpu", "cuda"):
        inputs = logits.to(device).requires_grad_()
        value = loss(inputs, target.to(device))
        results.append((value.detach().cpu(), torch.autograd.grad(value, inputs)[0].cpu()))
    torch.testing.assert_close(results[1], results[0])


def test_nacl_compiled() -> None:
    logits, target = (tensor.cuda() for tensor in case())
    torch.testing.assert_close(
        torch.compile(NACLLoss(), fullgraph=True)(logits, target), NACLLoss()(logits, target)
    )


def test_label_out_of_range_is_an_error() -> None:
    """In a separate process, since a failed assertion makes the device unusable for the process."""
    code = (
        "import torch; from calib_components.losses import NACLLoss;NACLLoss()(torch.zeros(1, 2, 4,"
        " 4).cuda(), torch.full((1, 1, 4, 4), 2).cuda()); torch.cuda.synchronize()"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert "device-side assert" in done.stderr or "class indices" in done.stderr


def values_on(
    device: str, metric: CaseMetric, y_pred: torch.Tensor, y: torch.Tensor
) -> torch.Tensor:
    metric(y_pred.to(device), y.to(device))
    return metric.aggregate("none").cpu()


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("region", [*REGIONS, 1, [2, 3]], ids=str)
@pytest.mark.parametrize("metric", [ECEMetric, CECEMetric, NLLMetric, BrierMetric])
def test_metrics_of_regions_are_those_of_the_cpu(
    metric: Any, region: Any, deterministic: bool
) -> None:
    logits, y = case()
    torch.use_deterministic_algorithms(deterministic)
    try:
        on_cpu, on_gpu = (
            values_on(device, metric(region=region), logits.softmax(1), y)
            for device in ("cpu", "cuda")
        )
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(on_gpu, on_cpu, rtol=0, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("metric", [VolumeMetric, ExpectedDSCMetric])
def test_metrics_of_structures_are_those_of_the_cpu(metric: Any) -> None:
    logits, y = case()
    structures = {"a": [1], "bc": [2, 3]}
    on_cpu, on_gpu = (
        values_on(device, metric(structures), logits.softmax(1), y) for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("metric", [DSCMetric, HD95Metric])
def test_metrics_of_masks_are_those_of_the_cpu(metric: Any) -> None:
    logits, y = case()
    masks = F.one_hot(logits.argmax(1), 4).movedim(-1, 1)
    on_cpu, on_gpu = (values_on(device, metric(), masks, y) for device in ("cpu", "cuda"))
    torch.testing.assert_close(on_gpu, on_cpu, rtol=0, atol=1e-6, equal_nan=True)


def test_a_bundle_is_evaluated(tmp_path: Path) -> None:
    """Logits of an inferer are on the CPU, the cases on the GPU."""
    data, weights = make_prepared(ACDC, tmp_path / "data"), make_weights(ACDC, tmp_path / "weights")
    places = {
        "dataset_dir": str(data),
        "ckpt_dir": str(weights),
        "output_dir": str(tmp_path / "eval"),
        "device": "cuda",
    }
    run_bundle(ACDC, "train.yaml", "calibrate.yaml", **places)
    run_bundle(ACDC, "train.yaml", "evaluate.yaml", **places)
    assert (tmp_path / "eval" / "cases.csv").is_file()
