"""Metrics read voxels on one thread, and leave PyTorch as many as it had."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from calib_components.metrics import ECEMetric, ExpectedDSCMetric, ThresholdMetric, VolumeMetric
from calib_components.metrics.case_metric import CaseMetric

STRUCTURES = {"a": [1]}


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    "metric",
    [ECEMetric(), VolumeMetric(STRUCTURES), ThresholdMetric(STRUCTURES), ExpectedDSCMetric(STRUCTURES)],
    ids=lambda metric: type(metric).__name__,
)
def test_threads_are_those_of_before(metric: CaseMetric) -> None:
    y_pred, y = torch.full((1, 2, 4, 4), 0.5), torch.ones(1, 1, 4, 4, dtype=torch.int)
    metric(y_pred, y)
    assert torch.get_num_threads() == 2
    with pytest.raises(ValueError, match=r"^y: expected class indices from 0 to 1"):
        metric(y_pred, y + 9)
    assert torch.get_num_threads() == 2
