from __future__ import annotations

import pytest
import torch

from calib_components.metrics import LogitMagnitudeMetric


def test_by_hand_over_cases_of_different_size() -> None:
    metric = LogitMagnitudeMetric()
    first = torch.tensor([[[1.0, -2.0, 3.0]], [[0.0, 4.0, -6.0]]])  # (2 classes, 1, 3)
    second = torch.tensor([[[-5.0]], [[7.0]]])
    metric([first, second], [torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0]]])])
    per_case = metric.aggregate("none")
    torch.testing.assert_close(per_case[0], torch.tensor([[1, 0], [2.5, 5]], dtype=torch.float64))
    torch.testing.assert_close(per_case[1, 0], torch.tensor([5, 7], dtype=torch.float64))
    assert per_case[1, 1].isnan().all()  # the second case has no voxel of class 1
    # Over voxels: |1| and |-5|, |0| and |7| where the ground truth is class 0.
    torch.testing.assert_close(metric.magnitudes, torch.tensor([[3, 3.5], [2.5, 5]], dtype=torch.float64))
    assert metric.aggregate().item() == pytest.approx((8.5 / 4 + 6) / 2)


def test_ignored_voxels_are_left_out() -> None:
    metric = LogitMagnitudeMetric(ignore_index=255)
    metric(torch.tensor([[[1.0, 100.0]], [[2.0, 100.0]]]).unsqueeze(0), torch.tensor([[[[0, 255]]]]))
    torch.testing.assert_close(metric.magnitudes[0], torch.tensor([1, 2], dtype=torch.float64))


def test_sums_do_not_drift_in_half_precision() -> None:
    metric = LogitMagnitudeMetric()
    logits = torch.full((1, 2, 1000, 1000), 3.0, dtype=torch.float16)
    metric(logits, torch.zeros(1, 1, 1000, 1000, dtype=torch.uint8))
    assert metric.magnitudes[0].tolist() == [3, 3]


@pytest.mark.parametrize("label", [2, -1, 0.5])
def test_invalid_label_is_an_error(label: float) -> None:
    with pytest.raises(ValueError, match=r"^y: expected class indices from 0 to 1, got other values in 1 of 2 voxels$"):
        LogitMagnitudeMetric()(torch.zeros(1, 2, 1, 2), torch.tensor([[[[0, label]]]]))


def test_wrong_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^y: expected shape \(1, 1, 4, 4\) .* got \(1, 2, 4, 4\)$"):
        LogitMagnitudeMetric()(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4))
