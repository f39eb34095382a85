"""ECE, CECE and adaptive ECE: values of cases, bins, and ECE and CECE from one pass."""

from __future__ import annotations

import monai.metrics.metric
import numpy as np
import pytest
import torch

from calib_components.metrics import (
    CalibrationMetric,
    CECEMetric,
    ECEMetric,
    adaptive_calibration_error,
    calibration_bins,
)
from tests.helpers import SHARED

CASES = 4


def cases() -> tuple[torch.Tensor, torch.Tensor]:
    """Four cases of three classes; the last one has no foreground."""
    generator = torch.Generator().manual_seed(0)
    y_pred = (2 * torch.randn(CASES, 3, 8, 7, 6, generator=generator)).softmax(1)
    y = torch.randint(3, (CASES, 1, 8, 7, 6), generator=generator)
    y[-1] = 0
    return y_pred, y


def assert_equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14, equal_nan=True)


@pytest.mark.parametrize("metric_type", [ECEMetric, CECEMetric])
def test_bins_per_case_and_pooled(metric_type: type) -> None:
    y_pred, y = cases()
    metric = metric_type()
    metric(y_pred[:1], y[:1])
    metric(y_pred[1:], y[1:])
    expected = calibration_bins(y_pred, y, classwise=metric_type is CECEMetric)
    assert metric.case_bins.to_dict() == expected.to_dict()
    assert metric.bins.to_dict() == expected.pooled().to_dict()
    assert metric.case_bins.count.dtype == torch.int64


def test_mean_batch_of_cece_is_one_value_per_class() -> None:
    y_pred, y = cases()
    metric = CECEMetric()
    metric(y_pred, y)
    per_class = metric.aggregate("mean_batch")
    by_definition = []
    for case in range(CASES - 1):  # the last case is NaN
        bins = calibration_bins(y_pred[case : case + 1], y[case : case + 1], classwise=True)
        gaps = (bins.confidence - bins.accuracy).abs().nan_to_num()
        by_definition.append((bins.count / bins.count.sum(-1, keepdim=True) * gaps).sum(-1)[0])
    assert per_class.shape == (3,)
    torch.testing.assert_close(per_class, torch.stack(by_definition).mean(0))
    torch.testing.assert_close(per_class.mean(), metric.aggregate())
    assert metric.aggregate("none").shape == (CASES,)


def test_mean_batch_of_ece_is_the_mean_over_cases() -> None:
    metric = ECEMetric()
    metric(*cases())
    assert_equal(metric.aggregate("mean_batch"), metric.aggregate("none").nanmean())


def test_a_case_without_foreground_is_left_out_of_the_mean() -> None:
    y_pred, y = cases()
    metric = ECEMetric()
    metric(y_pred, y)
    assert metric.aggregate("none").isnan().tolist() == [False, False, False, True]
    assert_equal(metric.aggregate(), metric.aggregate("none")[:3].mean())
    metric.reset()
    metric(y_pred[-1:], y[-1:])
    assert metric.aggregate().isnan()


@pytest.mark.parametrize("as_list", [False, True])
def test_one_pass_gives_ece_and_cece(as_list: bool) -> None:
    y_pred, y = cases()
    options = {"num_bins": 10, "foreground_only": False, "ignore_index": 2}
    both, ece, cece = CalibrationMetric(**options), ECEMetric(**options), CECEMetric(**options)
    for metric in (both, ece, cece):
        metric(*(list(x) if as_list else x for x in (y_pred, y)))
    for reduction in ("none", "mean_batch", "mean"):
        assert torch.equal(both.aggregate(reduction), ece.aggregate(reduction))
        assert torch.equal(both.cece.aggregate(reduction), cece.aggregate(reduction))
    assert torch.equal(both.get_buffer(), ece.get_buffer())
    assert both.bins.to_dict() == ece.bins.to_dict()
    assert both.cece.bins.to_dict() == cece.bins.to_dict()
    assert len(both) == len(both.cece) == CASES
    both.reset()
    assert len(both) == len(both.cece) == 0


def test_aggregate_gathers_ece_and_cece_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered = []

    def gather(data: torch.Tensor, concat: bool) -> torch.Tensor:
        """Stands for two processes that have the same cases."""
        assert concat
        gathered.append(data.shape)
        return torch.cat([data, data])

    monkeypatch.setattr(monai.metrics.metric, "evenly_divisible_all_gather", gather)
    y_pred, y = cases()
    metric = CalibrationMetric()
    metric(y_pred, y)
    metric.aggregate()
    # Observed and expected bins, and one value each for NLL and Brier score.
    assert sorted(gathered) == [(CASES,)] * 2 + [(CASES, 3, 15)] * 6 + [(CASES, 15)] * 6
    assert len(metric.cece.aggregate("none")) == len(metric.aggregate("none")) == 2 * CASES
    assert metric.cece.bins.count.sum() == 2 * 3 * (y > 0).sum()
    assert len(gathered) == 14  # so that a single process may read the CECE after aggregate()


@pytest.mark.parametrize("name", ["metrics_k2", "metrics_k4"])
def test_adaptive_error_equals_the_authors(name: str) -> None:
    path = SHARED / "golden" / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"golden values not found: {path}")
    values = dict(np.load(path))
    y_pred = torch.from_numpy(values["logits"]).softmax(1).movedim(1, 0)[None]
    expected = values["aece_foreground/bins15"].item()
    error = adaptive_calibration_error(y_pred, torch.from_numpy(values["labels"])[None, None])
    assert error.item() == pytest.approx(expected, abs=1e-6)


def test_adaptive_error_by_hand() -> None:
    # Ten voxels of class 1 with confidence 0.55, 0.60 ... 1.00; the first four are wrong: their label is class 2.
    p1 = torch.linspace(0.55, 1.0, 10, dtype=torch.float64)
    y_pred = torch.stack([torch.zeros_like(p1), p1, 1 - p1])[None]
    y = torch.tensor([2] * 4 + [1] * 6).view(1, 1, -1)
    # Two bins, (0.55, 0.80] and (0.80, 1.00]: the least confident voxel is in neither.
    gaps = (0.60 + 0.65 + 0.70 - 0.25 - 0.20, 0.15 + 0.10 + 0.05 + 0.0)
    assert adaptive_calibration_error(y_pred, y, num_bins=2).item() == pytest.approx(sum(gaps) / 10)


def test_adaptive_error_with_more_bins_than_voxels() -> None:
    # The least confident voxel is in no bin, the other alone in one.
    p1 = torch.tensor([0.6, 0.9], dtype=torch.float64)
    y_pred, y = torch.stack([1 - p1, p1])[None], torch.ones(1, 1, 2)
    assert adaptive_calibration_error(y_pred, y, num_bins=15).item() == pytest.approx(0.1 / 2)


def test_adaptive_error_of_a_constant_prediction_is_its_gap() -> None:
    y_pred = torch.tensor([0.1, 0.9]).view(1, 2, 1).repeat(1, 1, 1000)
    y = (torch.arange(1000) % 4 > 0).long().view(1, 1, -1)
    error = adaptive_calibration_error(y_pred, y, foreground_only=False)
    assert error.item() == pytest.approx(0.15 * 999 / 1000, abs=1e-6)


def test_adaptive_error_of_a_case_without_foreground_is_nan() -> None:
    assert adaptive_calibration_error(*cases()).isnan().tolist() == [False, False, False, True]


def test_channel_of_sigmoids_without_voxels_is_left_out_of_the_mean_over_channels() -> None:
    """As the enhancing part of a tumour that has none: the other channels have an error."""
    y_pred = torch.tensor([[[0.2, 0.7], [0.1, 0.3]]])
    y = torch.tensor([[[0, 1], [0, 0]]])
    metric = CECEMetric(sigmoid=True)  # over the foreground of each channel
    metric(y_pred, y)
    assert metric.aggregate().item() == pytest.approx(0.3)
    torch.testing.assert_close(metric.aggregate("mean_batch")[0].item(), 0.3)


def test_case_without_voxels_has_no_error_if_true_either() -> None:
    """So that both means are over the same cases."""
    p = torch.tensor([[0.3, 0.6], [0.7, 0.4]])
    metric = ECEMetric()
    metric(torch.stack([p, p]), torch.tensor([[[1, 1]], [[0, 0]]]))
    assert metric.aggregate("none").isnan().tolist() == [False, True]
    assert metric.aggregate_if_true("none").isnan().tolist() == [False, True]
