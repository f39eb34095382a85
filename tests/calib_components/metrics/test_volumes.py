"""Volumes, expected DSC, confidence and accuracy of structures, by numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calib_components.errors import InputError
from calib_components.metrics import (
    ExpectedDSCMetric,
    StructureMeasures,
    VolumeMetric,
    measure_structures,
)

STRUCTURES = {"a": [1], "bc": [2, 3]}


def softmax_case(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y_pred = (3 * torch.randn(3, 4, *shape, generator=generator)).softmax(1)
    return y_pred, torch.randint(4, (3, 1, *shape), generator=generator)


def assert_same(
    actual: StructureMeasures, expected: StructureMeasures, chosen: slice = slice(None)
) -> None:
    """All sums, or those of chosen structures."""
    sums = {name: total[:, chosen] for name, total in actual.sums.items()}
    torch.testing.assert_close(sums, expected.sums, rtol=1e-12, atol=1e-12)


@settings(max_examples=10)
@given(st.integers(0, 1000))
def test_volumes_by_numpy_and_expected_dsc_by_numpy(seed: int) -> None:
    """So are confidence, accuracy and DSC."""
    y_pred, y = softmax_case(9, 8, 7, seed=seed)
    p, label, sizes = y_pred.double().numpy(), y.numpy()[:, 0], np.array([0.25, 2, 2])
    volumes, dsc = VolumeMetric(STRUCTURES), ExpectedDSCMetric(STRUCTURES)
    volumes(y_pred[:1], y[:1], voxel_volume=0.25)
    volumes([*y_pred[1:]], [*y[1:]], voxel_volume=2)
    dsc(y_pred, torch.zeros_like(y))  # whatever the ground truth
    measures = measure_structures(y_pred, y, STRUCTURES)
    for number, classes in enumerate(STRUCTURES.values()):
        of_structure, predicted = p[:, classes].sum(1), np.isin(p.argmax(1), classes)
        true = np.isin(label, classes)
        for found, expected in (
            (volumes.true, true),
            (volumes.expected, of_structure),
            (volumes.segmented, predicted),
            (volumes.low, of_structure > 0.95),
            (volumes.high, of_structure > 0.05),
        ):
            np.testing.assert_allclose(
                found[:, number], expected.sum((1, 2, 3)) * sizes, rtol=1e-12
            )

        def total(values: np.ndarray) -> np.ndarray:
            return values.sum((1, 2, 3))

        overlap, correct = total(of_structure * predicted), total(true & predicted)
        for found, expected in (
            (dsc.aggregate("none"), 2 * overlap / total(of_structure + predicted)),
            (measures.dsc, 2 * correct / (total(predicted) + total(true))),
            (measures.confidence, overlap / total(predicted)),
            (measures.accuracy, correct / total(predicted)),
        ):
            np.testing.assert_allclose(found[:, number], expected, rtol=1e-12)
    torch.testing.assert_close(volumes.aggregate(), (volumes.expected - volumes.true).mean())


def test_ignored_voxels_one_hot_labels_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    y_pred, y = softmax_case(6, 5)
    ignored, unchecked = y.clone(), y_pred.clone()
    ignored[..., 3:], unchecked[..., 3:] = 255, torch.nan
    kept = measure_structures(y_pred[..., :3], y[..., :3], STRUCTURES)
    assert_same(measure_structures(unchecked, ignored, STRUCTURES, ignore_index=255), kept)
    one_hot = torch.nn.functional.one_hot(y[:, 0], 4).movedim(-1, 1)
    whole = measure_structures(y_pred, y, STRUCTURES)
    monkeypatch.setattr("calib_components.metrics.voxels.CPU_CHUNK", 28)  # 7 voxels
    assert_same(measure_structures(y_pred, one_hot, STRUCTURES), whole)


def test_channels_of_sigmoids_are_problems_of_two_classes() -> None:
    p = torch.rand(2, 3, 6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = (torch.rand(p.shape, generator=torch.Generator().manual_seed(2)) < 0.4).long()
    y[0, 2, 0] = 9  # ignored in one channel only
    together = measure_structures(p, y, {"last": [2], "first": [0]}, ignore_index=9, sigmoid=True)
    for number, channel in enumerate((2, 0)):
        two = torch.stack([1 - p[:, channel], p[:, channel]], 1)
        alone = measure_structures(two, y[:, [channel]], {"x": [1]}, ignore_index=9)
        assert_same(together, alone, slice(number, number + 1))
        assert_same(
            measure_structures(p[:, [channel]], y[:, [channel]], {"x": [0]}, ignore_index=9), alone
        )


@pytest.mark.parametrize(
    ("structures", "options", "message"),
    [
        *(({"a": classes}, {}, "structures|region") for classes in ([], "all", [1.0], [-1], [4])),
        ({"a": [1, 2]}, {"sigmoid": True}, "one channel .*for 'a'"),
        ({"a": [1]}, {"voxel_volume": float("nan")}, "voxel_volume"),
    ],
)
def test_unsuitable_options(structures: Any, options: dict[str, Any], message: str) -> None:
    y_pred, y = softmax_case(3, 3)
    if "sigmoid" in options:
        y_pred, y = y_pred**2, (y == torch.arange(4).view(4, 1, 1)).int()
    with pytest.raises(InputError, match=message):
        measure_structures(**{"y_pred": y_pred, "y": y, "structures": structures, **options})


def test_expected_dsc_of_what_is_not_predicted() -> None:
    half = torch.tensor([[[0.5, 0.75, 0.25]]])  # half is not above half
    assert measure_structures(half, half > 0.5, {"a": [0]}).expected_dsc.item() == pytest.approx(
        2 * 0.75 / (1 + 1.5)
    )
    y_pred = torch.tensor([[[0.5, 0.75], [0.25, 0.25], [0.25, 0.0], [0.0, 0.0]]])
    y, structures = torch.zeros(1, 1, 2), {"possible": [1, 2], "impossible": [3]}
    values = measure_structures(y_pred, y, structures).expected_dsc
    assert str(values.tolist()) == "[[0.0, nan]]"
