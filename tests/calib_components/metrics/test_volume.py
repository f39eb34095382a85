from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from calib_components.metrics import VolumeMetric, structure_volumes


def two_classes(p: torch.Tensor) -> torch.Tensor:
    """Probabilities `(1, 2, voxels)` from those of class 1."""
    return torch.stack([1 - p, p])[None]


def test_by_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    y_pred = (4 * torch.randn(3, 4, 9, 8, 7, generator=generator)).softmax(1)
    y = torch.randint(4, (3, 1, 9, 8, 7), generator=generator)
    metric = VolumeMetric({"a": [1], "bc": [2, 3]})
    metric(y_pred[:2], y[:2], voxel_volume=0.25)
    metric(y_pred[2:], y[2:], voxel_volume=3)
    sizes = np.array([0.25, 0.25, 3])
    p, label = y_pred.double().numpy(), y.numpy()[:, 0]
    for number, classes in enumerate([(1,), (2, 3)]):
        of_structure = p[:, classes].sum(1)
        rounded = of_structure.astype(np.float32)
        for found, expected in (
            (metric.true, np.isin(label, classes)),
            (metric.expected, of_structure),
            (metric.low, rounded > np.float32(0.95)),
            (metric.high, rounded > np.float32(0.05)),
        ):
            np.testing.assert_allclose(found[:, number], expected.sum((1, 2, 3)) * sizes, rtol=1e-12)
    assert metric.true.dtype == torch.float64
    bias = (metric.expected - metric.true).mean()
    assert metric.aggregate().item() == pytest.approx(bias.item(), rel=1e-12)
    assert metric.aggregate("mean_batch").shape == (2,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_probability_at_the_edge_is_not_above_it(dtype: torch.dtype) -> None:
    p = torch.tensor([0.05, 0.95], dtype=dtype)
    above = torch.nextafter(p.float(), torch.ones(2)).to(dtype) if dtype == torch.float32 else p
    volumes = structure_volumes(p[None, None], torch.zeros(1, 1, 2), {"a": [0]})
    assert (volumes.low.item(), volumes.high.item()) == (0, 1)
    if dtype == torch.float32:
        volumes = structure_volumes(above[None, None], torch.zeros(1, 1, 2), {"a": [0]})
        assert (volumes.low.item(), volumes.high.item()) == (1, 2)


def test_range_of_fully_dependent_voxels_covers_90_percent() -> None:
    # One random number decides for all voxels: the volume is the number of p above it.
    p = torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
    volumes = structure_volumes(two_classes(p), torch.zeros(1, 1, 500), {"a": [1]})
    u = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    drawn = (p > u[:, None]).sum(1)
    covered = ((drawn >= volumes.low.item()) & (drawn <= volumes.high.item())).double().mean()
    assert 0.9 <= covered < 0.92  # the volume is a whole number: both ends are reached by a range of u
    assert drawn.double().mean().item() == pytest.approx(volumes.expected.item(), rel=1e-3)


def test_expected_volume_is_the_mean_of_drawn_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(50, generator=generator, dtype=torch.float64)
    volumes = structure_volumes(two_classes(p), torch.zeros(1, 1, 50), {"a": [1]}, voxel_volume=0.5)
    drawn = 0.5 * (torch.rand(20000, 50, generator=generator, dtype=torch.float64) < p).sum(1).double()
    assert drawn.mean().item() == pytest.approx(volumes.expected.item(), abs=4 * drawn.std().item() / 20000**0.5)


@pytest.mark.parametrize("size", [0, -1.0, float("nan"), float("inf"), "1", None, True])
def test_unsuitable_volume_of_a_voxel(size: Any) -> None:
    with pytest.raises(ValueError, match=r"^voxel_volume: expected a number above 0, got "):
        VolumeMetric({"a": [1]})(torch.full((1, 2, 3), 0.5), torch.zeros(1, 1, 3), voxel_volume=size)


def test_lists_take_the_volume_of_a_voxel() -> None:
    metric = VolumeMetric({"a": [1]})
    metric([torch.full((2, 3), 0.5), torch.full((2, 5), 0.5)], [torch.ones(1, 3), torch.ones(1, 5)], voxel_volume=2)
    assert metric.expected.tolist() == [[3.0], [5.0]]
    assert metric.true.tolist() == [[6.0], [10.0]]
    assert metric.aggregate("none").tolist() == [[-3.0], [-5.0]]
