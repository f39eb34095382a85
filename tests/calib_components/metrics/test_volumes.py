"""Volumes, expected DSC and counts above thresholds of structures, by numpy, scikit-learn and
simulation.
"""

from __future__ import annotations

import json
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
    ThresholdCounts,
    VolumeMetric,
    measure_structures,
)

STRUCTURES = {"a": [1], "bc": [2, 3]}


def softmax_case(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y_pred = (3 * torch.randn(3, 4, *shape, generator=generator)).softmax(1)
    return y_pred, torch.randint(4, (3, 1, *shape), generator=generator)


def assert_same(
    actual: StructureMeasures, expected: StructureMeasures, number: int | slice = slice(None)
) -> None:
    """All values, or those of one structure."""
    for one, other in zip(fields_of(actual), fields_of(expected), strict=True):
        torch.testing.assert_close(one[:, number], other, rtol=1e-12, atol=1e-12, equal_nan=True)


def fields_of(measures: StructureMeasures) -> list[torch.Tensor]:
    counts = measures.thresholds
    of_counts = counts.true_positive, counts.predicted, counts.true
    return [*measures[:6], *of_counts]


@settings(max_examples=10)
@given(st.integers(0, 1000))
def test_volumes_by_numpy_and_expected_dsc_by_numpy(seed: int) -> None:
    y_pred, y = softmax_case(9, 8, 7, seed=seed)
    p, label, sizes = y_pred.double().numpy(), y.numpy()[:, 0], np.array([0.25, 2, 2])
    volumes, dsc = VolumeMetric(STRUCTURES), ExpectedDSCMetric(STRUCTURES)
    volumes(y_pred[:1], y[:1], voxel_volume=0.25)
    volumes([*y_pred[1:]], [*y[1:]], voxel_volume=2)
    dsc(y_pred, torch.zeros_like(y))  # whatever the ground truth
    for number, classes in enumerate(STRUCTURES.values()):
        of_structure, predicted = p[:, classes].sum(1), np.isin(p.argmax(1), classes)
        rounded = of_structure.astype(np.float32)
        for found, expected in (
            (volumes.true, np.isin(label, classes)),
            (volumes.expected, of_structure),
            (volumes.segmented, predicted),
            (volumes.low, rounded > np.float32(0.95)),
            (volumes.high, rounded > np.float32(0.05)),
        ):
            np.testing.assert_allclose(
                found[:, number], expected.sum((1, 2, 3)) * sizes, rtol=1e-12
            )
        overlap, both = (
            each.sum((1, 2, 3)) for each in (of_structure * predicted, of_structure + predicted)
        )
        np.testing.assert_allclose(dsc.aggregate("none")[:, number], 2 * overlap / both, rtol=1e-12)
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


def test_counts_by_numpy() -> None:
    y_pred, y = softmax_case(9, 8, 7)
    counts = measure_structures(y_pred, y, STRUCTURES).thresholds
    assert counts.thresholds.tolist() == [i / 100 for i in range(1, 100)]
    for number, classes in enumerate(STRUCTURES.values()):
        p = y_pred.double()[:, classes].sum(1).float().flatten(1)[:, None]
        is_above = (p > torch.arange(1, 100)[:, None] / 100).numpy()
        truth = np.isin(y.flatten(1), classes)
        hits = (is_above & truth[:, None]).sum(-1)
        np.testing.assert_array_equal(counts.true_positive[:, number], hits)
        np.testing.assert_array_equal(counts.predicted[:, number], is_above.sum(-1))
        np.testing.assert_array_equal(counts.true[:, number], truth.sum(1))
        dsc = 2 * hits / (is_above.sum(-1) + truth.sum(1)[:, None])
        np.testing.assert_allclose(counts.dsc[:, number], dsc, rtol=1e-12)
    read = ThresholdCounts.from_dict(json.loads(json.dumps(counts.to_dict())))
    assert all(torch.equal(field, getattr(read, name)) for name, field in vars(counts).items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_probability_at_a_threshold_is_not_above_it(dtype: torch.dtype) -> None:
    at = (torch.arange(1, 100, dtype=torch.float64) / 100).to(dtype)[None, None]
    found = measure_structures(at, torch.ones(1, 1, 99), {"a": [0]}).thresholds
    assert found.predicted[0, 0].tolist() == list(range(98, -1, -1))  # the thresholds above each


def counts_of(true_positive: list, predicted: list, true: list) -> ThresholdCounts:
    fields = (torch.tensor(field) for field in (true_positive, predicted, true))
    return ThresholdCounts(torch.tensor([0.3, 0.5, 0.7]), *fields)


def test_best_threshold() -> None:
    # The second case has no such structure, so it has no DSC at any threshold.
    assert counts_of(
        [[[4, 3, 2]], [[0, 0, 0]]], [[[6, 4, 2]], [[2, 0, 0]]], [[4], [0]]
    ).best() == pytest.approx(0.3)
    equal = counts_of(
        [[[2, 2, 2], [0, 0, 0], [1, 2, 2]]], [[[2, 2, 2], [0, 0, 0], [2, 3, 2]]], [[2, 0, 2]]
    )
    # The nearest to 0.5; the highest
    assert equal.best()[[0, 2]].tolist() == pytest.approx([0.5, 0.7])
    assert equal.best()[1].isnan()
