"""Volumes, expected DSC and counts above thresholds, by numpy, scikit-learn and simulation."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn

from calib_components.errors import InputError
from calib_components.metrics import (
    ExpectedDSCMetric,
    ThresholdCounts,
    VolumeMetric,
    dice,
    expected_dsc,
    structure_volumes,
    threshold_counts,
)

STRUCTURES = {"a": [1], "bc": [2, 3]}


def softmax_case(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y_pred = (3 * torch.randn(3, 4, *shape, generator=generator)).softmax(1)
    return y_pred, torch.randint(4, (3, 1, *shape), generator=generator)


# What the three share: which voxels and classes count, and errors


def volumes(y_pred: torch.Tensor, y: torch.Tensor, structures: Any, **options: Any) -> list[torch.Tensor]:
    return [*structure_volumes(y_pred, y, structures, **options)]


def counts(y_pred: torch.Tensor, y: torch.Tensor, structures: Any, **options: Any) -> list[torch.Tensor]:
    return [*vars(threshold_counts(y_pred, y, structures, **options)).values()][1:]


def expected(y_pred: torch.Tensor, y: torch.Tensor, structures: Any, **options: Any) -> list[torch.Tensor]:
    return [expected_dsc(y_pred, structures, y, **options)]


ALL = pytest.mark.parametrize("values", [volumes, counts, expected])


def assert_same(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("values", [volumes, counts])
def test_classes_of_a_structure_count_as_one(values: Callable) -> None:
    y_pred, y = softmax_case(9, 8, 7)
    odd = y_pred[:, 1].double() + y_pred[:, 3].double()
    together = values(y_pred.double(), y, {"odd": [3, 1]})
    as_one = values(torch.stack([1 - odd, odd], 1), y % 2, {"odd": [1]})
    # but for the segmented volume: the most probable class is among four, or among two
    assert_same(together[:4], as_one[:4])


@ALL
def test_ignored_voxels_one_hot_labels_and_chunks(values: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    y_pred, y = softmax_case(6, 5)
    found = values(y_pred[..., :3], y[..., :3], STRUCTURES)
    ignored, unchecked = y.clone(), y_pred.clone()
    ignored[..., 3:], unchecked[..., 3:] = 255, torch.nan
    assert_same(values(unchecked, ignored, STRUCTURES, ignore_index=255), found)
    one_hot = torch.nn.functional.one_hot(y[:, 0], 4).movedim(-1, 1)
    whole = values(y_pred, y, STRUCTURES)
    monkeypatch.setattr("calib_components.metrics.voxels.CPU_CHUNK", 28)  # 7 voxels
    assert_same(values(y_pred, one_hot, STRUCTURES), whole)


@ALL
def test_channels_of_sigmoids_are_problems_of_two_classes(values: Callable) -> None:
    p = torch.rand(2, 3, 6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = (torch.rand(p.shape, generator=torch.Generator().manual_seed(2)) < 0.4).long()
    y[0, 2, 0] = 9  # ignored in one channel only
    together = values(p, y, {"last": [2], "first": [0]}, ignore_index=9, sigmoid=True)
    for number, channel in enumerate((2, 0)):
        two = torch.stack([1 - p[:, channel], p[:, channel]], 1)
        alone = values(two, y[:, [channel]], {"x": [1]}, ignore_index=9)
        assert_same([field[:, number : number + 1] for field in together], alone)
        assert_same(values(p[:, [channel]], y[:, [channel]], {"x": [0]}, ignore_index=9), alone)  # one channel


@ALL
def test_unsuitable_structures(values: Callable) -> None:
    y_pred, y = softmax_case(3, 3)
    for structures in ([1], {}, {"a": []}, {"a": "all"}, {"a": [1.0]}, {"a": [-1]}, {"a": [4]}):
        with pytest.raises(InputError, match=r"structures|region"):
            values(y_pred, y, structures)
    with pytest.raises(InputError, match="one channel for 'a'"):
        values(y_pred, y.expand(-1, 4, -1, -1) > 0, {"a": [1, 2]}, sigmoid=True)
    with pytest.raises(InputError, match="y_pred has 0 to 0"):
        values(torch.rand(1, 1, 4), torch.zeros(1, 1, 4), {"a": [1]})
    with pytest.raises(InputError, match=r"outside \[0, 1\]"):
        values(3 * y_pred, y, {"a": [1]})


# Volumes


def test_volumes_by_numpy() -> None:
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
            (metric.segmented, np.isin(p.argmax(1), classes)),
            (metric.low, rounded > np.float32(0.95)),
            (metric.high, rounded > np.float32(0.05)),
        ):
            np.testing.assert_allclose(found[:, number], expected.sum((1, 2, 3)) * sizes, rtol=1e-12)
    assert metric.true.dtype == torch.float64
    bias = (metric.expected - metric.true).mean()
    assert metric.aggregate().item() == pytest.approx(bias.item(), rel=1e-12)
    assert metric.aggregate("mean_batch").shape == (2,)


def test_range_of_fully_dependent_voxels_covers_90_percent() -> None:
    # One random number decides for all voxels: the volume is the number of p above it.
    p = torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
    volumes = structure_volumes(torch.stack([1 - p, p])[None], torch.zeros(1, 1, 500), {"a": [1]})
    u = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    drawn = (p > u[:, None]).sum(1)
    covered = ((drawn >= volumes.low.item()) & (drawn <= volumes.high.item())).double().mean()
    assert 0.9 <= covered < 0.92  # the volume is a whole number: both ends are reached by a range of u
    assert drawn.double().mean().item() == pytest.approx(volumes.expected.item(), rel=1e-3)


@pytest.mark.parametrize("size", [-1.0, float("nan"), float("inf")])
def test_unsuitable_volume_of_a_voxel(size: float) -> None:
    with pytest.raises(InputError, match="voxel_volume"):
        structure_volumes(torch.full((1, 2, 3), 0.5), torch.zeros(1, 1, 3), {"a": [1]}, voxel_volume=size)


def test_lists_take_the_volume_of_a_voxel() -> None:
    metric = VolumeMetric({"a": [1]})
    metric([torch.full((2, 3), 0.5), torch.full((2, 5), 0.5)], [torch.ones(1, 3), torch.ones(1, 5)], voxel_volume=2)
    assert metric.expected.tolist() == [[3.0], [5.0]]
    assert metric.true.tolist() == metric.high.tolist() == [[6.0], [10.0]]
    assert metric.aggregate("none").tolist() == [[-3.0], [-5.0]]


# Expected DSC


def test_expected_dsc_by_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    y_pred = (3 * torch.randn(2, 4, 9, 8, 7, generator=generator)).softmax(1)
    p, predicted = y_pred.double().numpy(), y_pred.numpy().argmax(1)
    expected = np.empty((2, 2))
    for number, classes in enumerate([(1,), (2, 3)]):
        mask, of_structure = np.isin(predicted, classes), p[:, classes].sum(1)
        overlap, total = (of_structure * mask).sum((1, 2, 3)), of_structure.sum((1, 2, 3))
        expected[:, number] = 2 * overlap / (mask.sum((1, 2, 3)) + total)
    structures = {"a": [1], "bc": [2, 3]}
    np.testing.assert_allclose(expected_dsc(y_pred, structures), expected, rtol=1e-12)
    metric = ExpectedDSCMetric(structures)
    metric(y_pred, torch.randint(4, (2, 1, 9, 8, 7)))  # whatever the ground truth
    np.testing.assert_allclose(metric.aggregate("none"), expected, rtol=1e-12)
    assert metric.aggregate().item() == pytest.approx(expected.mean())


def test_estimates_the_dice_of_drawn_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(1, 1, 40, 40, generator=generator, dtype=torch.float64) ** 2
    estimate = expected_dsc(p, {"a": [0]}).item()
    labels = torch.rand(400, 1, 40, 40, generator=generator, dtype=torch.float64) < p
    found = dice((p > 0.5).expand(400, -1, -1, -1), labels)
    assert found.mean().item() == pytest.approx(estimate, abs=0.002)


def test_half_is_not_above_half() -> None:
    p = torch.tensor([[[0.5, 0.75, 0.25]]])
    assert expected_dsc(p, {"a": [0]}).item() == pytest.approx(2 * 0.75 / (1 + 1.5))


def test_structures_that_are_not_predicted() -> None:
    y_pred = torch.tensor([[[0.5, 0.75], [0.25, 0.25], [0.25, 0.0], [0.0, 0.0]]])
    values = expected_dsc(y_pred, {"possible": [1, 2], "impossible": [3]})
    assert values[0, 0].item() == 0
    assert values[0, 1].isnan()


def test_expected_dsc_without_labels() -> None:
    with pytest.raises(InputError, match="ignore_index"):
        expected_dsc(torch.full((1, 2, 3), 0.5), {"a": [1]}, ignore_index=0)


# Counts above thresholds


def test_counts_by_numpy() -> None:
    y_pred, y = softmax_case(9, 8, 7)
    found = threshold_counts(y_pred, y, STRUCTURES)
    label = y.numpy()[:, 0]
    assert found.thresholds.tolist() == [i / 100 for i in range(1, 100)]
    for number, classes in enumerate([(1,), (2, 3)]):
        p = y_pred.double().numpy()[:, classes].sum(1).astype(np.float32)
        truth = np.isin(label, classes)
        for i, threshold in enumerate(found.thresholds.tolist()):
            mask = p > threshold  # numpy compares in float32
            np.testing.assert_array_equal(found.predicted[:, number, i], mask.sum((1, 2, 3)))
            np.testing.assert_array_equal(found.true_positive[:, number, i], (mask & truth).sum((1, 2, 3)))
        np.testing.assert_array_equal(found.true[:, number], truth.sum((1, 2, 3)))
    assert found.voxels.tolist() == [[504, 504]] * 3
    assert {field.dtype for name, field in vars(found).items() if name != "thresholds"} == {torch.int64}


def test_table_by_scikit_learn() -> None:
    y_pred, y = softmax_case(9, 8, 7)
    found = threshold_counts(y_pred, y, STRUCTURES)
    for number, classes in enumerate([(1,), (2, 3)]):
        table = found.table(number)
        p = y_pred.double()[:, classes].sum(1).float().numpy()
        truth = np.isin(y.numpy()[:, 0], classes)
        for i in range(0, 99, 7):
            mask = p > (i + 1) / 100
            tn, fp, fn, tp = sklearn.confusion_matrix(truth.ravel(), mask.ravel()).ravel()
            assert table.specificity[i].item() == tn / (tn + fp)
            assert table.sensitivity[i].item() == sklearn.recall_score(truth.ravel(), mask.ravel()) == tp / (tp + fn)
            assert table.ppv[i].item() == sklearn.precision_score(truth.ravel(), mask.ravel())
            f1 = [sklearn.f1_score(truth[case].ravel(), mask[case].ravel()) for case in range(3)]
            assert table.dsc[i].item() == pytest.approx(np.mean(f1), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_probability_at_a_threshold_is_not_above_it(dtype: torch.dtype) -> None:
    thresholds = torch.arange(1, 100, dtype=torch.float64) / 100
    at = thresholds.to(dtype)[None, None]
    found = threshold_counts(at, torch.ones(1, 1, 99), {"a": [0]})
    assert found.predicted[0, 0].tolist() == list(range(98, -1, -1))  # the thresholds above each
    for i, threshold in enumerate(thresholds.tolist()):
        assert found.predicted[0, 0, i] == (at > threshold).sum()  # as PyTorch compares
    above = torch.nextafter(at, torch.ones_like(at)) if dtype in (torch.float32, torch.float64) else None
    if above is not None:
        found = threshold_counts(above, torch.ones(1, 1, 99), {"a": [0]})
        assert found.predicted[0, 0].tolist() == list(range(99, 0, -1))


def counts_of(true_positive: list, predicted: list, true: list) -> ThresholdCounts:
    return ThresholdCounts(
        torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64),
        *(torch.tensor(field) for field in (true_positive, predicted, true)),
        torch.full(torch.tensor(true).shape, 10),
    )


def test_cases_without_the_structure() -> None:
    # The second case has none: it has no DSC at any threshold, so that their means are over the same cases.
    counts = counts_of([[[4, 3, 2]], [[0, 0, 0]]], [[[6, 4, 2]], [[2, 0, 0]]], [[4], [0]])
    table = counts.table(0)
    assert table.dsc.tolist() == pytest.approx([8 / 10, 6 / 8, 4 / 6])
    assert table.sensitivity.tolist() == [1, 0.75, 0.5]
    assert table.ppv.tolist() == pytest.approx([4 / 8, 3 / 4, 1])
    assert table.specificity.tolist() == pytest.approx([12 / 16, 15 / 16, 1])
    assert counts.best().tolist() == [counts.thresholds[0]]


def test_best_threshold() -> None:
    equal = counts_of([[[2, 2, 2], [0, 0, 0], [1, 2, 2]]], [[[2, 2, 2], [0, 0, 0], [2, 3, 2]]], [[2, 0, 2]])
    assert equal.best()[[0, 2]].tolist() == [0.5, 0.7]  # the nearest to 0.5; the highest
    assert equal.best()[1].isnan()
    table = equal.table(1)
    assert table.sensitivity.isnan().all()
    assert table.ppv.isnan().all()
    assert table.specificity.tolist() == [1, 1, 1]


def test_json() -> None:
    found = threshold_counts(*softmax_case(5, 4), STRUCTURES)
    read = ThresholdCounts.from_dict(json.loads(json.dumps(found.to_dict())))
    for name, field in vars(found).items():
        assert torch.equal(field, getattr(read, name))
        assert field.dtype == getattr(read, name).dtype
