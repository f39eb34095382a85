"""What calibrators cost, next to NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from calib_components.metrics import calibration_bins
from calib_components.posthoc.costs import Costs

P = torch.randn((4, 3, 9, 8), generator=torch.Generator().manual_seed(0)).softmax(1)
Y = torch.arange(4 * 72).reshape(4, 1, 9, 8) % 3
Y[:, :, 0] = 255


def test_sums_of_cases_are_those_of_all() -> None:
    costs = Costs.measure(P[:1], Y[:1], 255) + Costs.measure(P[1:], Y[1:], 255)
    kept, p, y = Y.flatten() != 255, P.movedim(1, -1).flatten(0, -2).numpy(), Y.flatten().numpy()
    for region, mask in (
        ("all", kept.numpy()),
        ("predicted", kept.numpy() & (p.argmax(1) > 0)),
    ):
        assert costs.nll[region] == pytest.approx(-np.log(p[mask, y[mask]]).sum(), rel=1e-6)
        expected = calibration_bins(P, Y, region=region, ignore_index=255).pooled().expected_error()
        assert costs.bins[region].expected_error() == pytest.approx(expected)
    volumes = (1 - p[kept, 0]).sum(), (y[kept] > 0).sum()
    assert (costs.expected_volume, costs.true_volume) == pytest.approx(volumes, rel=1e-6)
    excess = 100 * (volumes[0] / volumes[1] - 1)
    assert costs.describe().endswith(f"expected volume {excess:+.1f} %")


def test_channels_of_sigmoids() -> None:
    p, y = P[:, :2], (Y % 2).expand(-1, 2, -1, -1).masked_fill(Y == 255, 255)
    costs, kept = Costs.measure(p, y, 255, sigmoid=True), y != 255
    volumes = p[kept].sum().item(), (y[kept] == 1).sum().item()
    assert (costs.expected_volume, costs.true_volume) == pytest.approx(volumes, rel=1e-6)


def test_no_voxel_is_predicted() -> None:
    costs = Costs.measure(torch.tensor([[[0.9], [0.1]]]), torch.zeros(1, 1, 1))
    assert costs.nll["predicted"] == 0
    assert "predicted NLL nan" in costs.describe()
