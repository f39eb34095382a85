"""What the metrics of structures share: which voxels and classes count, and errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from calib_components.metrics import (
    ExpectedDSCMetric,
    ThresholdMetric,
    VolumeMetric,
    expected_dsc,
    structure_volumes,
    threshold_counts,
)
from calib_components.metrics.case_metric import CaseMetric

METRICS = [VolumeMetric, ExpectedDSCMetric, ThresholdMetric]


def softmax_case(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y_pred = (2 * torch.randn(2, 4, *shape, generator=generator)).softmax(1)
    return y_pred, torch.randint(4, (2, 1, *shape), generator=generator)


def stored(metric: CaseMetric) -> list[torch.Tensor]:
    found = metric.gathered()
    return found if isinstance(found, list) else [found]


def values(metric: CaseMetric, y_pred: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    metric(y_pred, y)
    return stored(metric)


def assert_same(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("metric", [VolumeMetric, ThresholdMetric])
def test_classes_of_a_structure_count_as_one(metric: Callable) -> None:
    y_pred, y = softmax_case(9, 8, 7)
    odd = y_pred[:, 1].double() + y_pred[:, 3].double()
    together = values(metric({"odd": [3, 1]}), y_pred.double(), y)
    as_one = values(metric({"odd": [1]}), torch.stack([1 - odd, odd], 1), y % 2)
    if metric is VolumeMetric:  # but for the segmented volume: the most probable class is among four, or among two
        together, as_one = together[:-1], as_one[:-1]
    assert_same(together, as_one)


@pytest.mark.parametrize("metric", METRICS)
def test_ignored_voxels_and_one_hot_labels(metric: Callable) -> None:
    y_pred, y = softmax_case(6, 5)
    structures = {"a": [1], "b": [2, 3]}
    expected = values(metric(structures), y_pred[..., :3], y[..., :3])
    ignored = y.clone()
    ignored[..., 3:] = 255
    unchecked = y_pred.clone()
    unchecked[..., 3:] = torch.nan
    assert_same(values(metric(structures, ignore_index=255), unchecked, ignored), expected)
    one_hot = torch.nn.functional.one_hot(y[:, 0], 4).movedim(-1, 1)
    assert_same(values(metric(structures), y_pred, one_hot), values(metric(structures), y_pred, y))


@pytest.mark.parametrize("metric", METRICS)
def test_channels_of_sigmoids_are_problems_of_two_classes(metric: Callable) -> None:
    p = torch.rand(2, 3, 6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = (torch.rand(p.shape, generator=torch.Generator().manual_seed(2)) < 0.4).long()
    y[0, 2, 0] = 9  # ignored in one channel only
    regions = {"last": [2], "first": [0]}
    together = values(metric(regions, ignore_index=9, sigmoid=True), p, y)
    for number, channel in enumerate((2, 0)):
        two = torch.stack([1 - p[:, channel], p[:, channel]], 1)
        alone = values(metric({"x": [1]}, ignore_index=9), two, y[:, [channel]])
        assert_same([field[:, number : number + 1] for field in together], alone)
        single = values(metric({"x": [0]}, ignore_index=9), p[:, [channel]], y[:, [channel]])  # one channel
        assert_same(single, alone)


@pytest.mark.parametrize("metric", METRICS)
def test_chunks_do_not_matter(metric: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    y_pred, y = softmax_case(10, 11)
    expected = values(metric({"a": [1], "b": [2, 3]}), y_pred, y)
    monkeypatch.setattr("calib_components.metrics.voxels.CPU_CHUNK", 28)  # 7 voxels
    assert_same(values(metric({"a": [1], "b": [2, 3]}), y_pred, y), expected)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("structures", "message"),
    [
        (None, r"^structures: expected class indices by name, such as \{\"heart\": \[1, 2\]\}, got None$"),
        ({}, r"^structures: expected class indices by name, such as .* got \{\}$"),
        ([[1]], r"^structures: expected class indices by name, such as .* got \[\[1\]\]$"),
        ({"a": []}, r"^structures: expected class indices for 'a', got \[\]$"),
        ({"a": "all"}, r"^structures: expected class indices for 'a', got 'all'$"),
        ({"a": [1.0]}, r"^structures: expected class indices for 'a', got \[1\.0\]$"),
        ({"a": [-1]}, r"^structures: expected class indices for 'a', got \[-1\]$"),
    ],
)
def test_unsuitable_structures(metric: Callable, structures: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metric(structures)


@pytest.mark.parametrize("metric", METRICS)
def test_structures_that_the_prediction_lacks(metric: Callable) -> None:
    y_pred, y = softmax_case(3, 3)
    with pytest.raises(ValueError, match=r"^structures: expected class indices from 0 to 3 for 'b', got \[1, 4\]$"):
        metric({"a": [1], "b": [1, 4]})(y_pred, y)
    with pytest.raises(ValueError, match=r"^structures: expected one channel of sigmoids for 'a', got \[1, 2\]$"):
        metric({"a": [1, 2]}, sigmoid=True)
    with pytest.raises(ValueError, match=r"^structures: expected a channel from 0 to 0 for 'a', got \[1\]$"):
        metric({"a": [1]})(torch.rand(1, 1, 4), torch.zeros(1, 1, 4))


@pytest.mark.parametrize("metric", METRICS)
def test_unsuitable_input_and_options(metric: Callable) -> None:
    y_pred, y = softmax_case(3, 3)
    with pytest.raises(ValueError, match=r"^y_pred: expected probabilities, got .* outside \[0, 1\]"):
        metric({"a": [1]})(3 * y_pred, y)
    with pytest.raises(ValueError, match=r"^y: expected class indices from 0 to 3 .* got other values in 18 of 18"):
        metric({"a": [1]})(y_pred, y + 4)
    with pytest.raises(ValueError, match=r"^ignore_index: expected a whole number or None, got 1\.5$"):
        metric({"a": [1]}, ignore_index=1.5)
    with pytest.raises(ValueError, match=r"^sigmoid: expected True or False, got 1$"):
        metric({"a": [1]}, sigmoid=1)


@pytest.mark.parametrize("function", [structure_volumes, threshold_counts])
def test_functions_check_structures_too(function: Callable) -> None:
    y_pred, y = softmax_case(3, 3)
    with pytest.raises(ValueError, match=r"^structures: expected class indices by name"):
        function(y_pred, y, [1])
    with pytest.raises(ValueError, match=r"^structures: expected class indices by name"):
        expected_dsc(y_pred, [1])  # type: ignore[arg-type]
