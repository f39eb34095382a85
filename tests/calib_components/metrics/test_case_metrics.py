"""What all metrics share: batches or lists of cases, reductions, reset, Ignite handlers."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler
from torch.nn import functional as F

from calib_components.metrics import (
    BrierMetric,
    CalibrationMetric,
    CECEMetric,
    DiceMetric,
    ECEMetric,
    HD95Metric,
    NLLMetric,
    brier_score,
    calibration_bins,
    negative_log_likelihood,
)

METRICS = (ECEMetric, CECEMetric, NLLMetric, BrierMetric, DiceMetric, HD95Metric)
CASES = 4


def cases(metric: type) -> tuple[torch.Tensor, torch.Tensor]:
    """Four cases of three classes; the last one has no foreground."""
    generator = torch.Generator().manual_seed(0)
    y_pred = (2 * torch.randn(CASES, 3, 8, 7, 6, generator=generator)).softmax(1)
    y = torch.randint(3, (CASES, 1, 8, 7, 6), generator=generator)
    y[-1] = 0
    if metric in (DiceMetric, HD95Metric):
        y_pred = F.one_hot(y_pred.argmax(1), 3).movedim(-1, 1)
    return y_pred, y


def assert_equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14, equal_nan=True)


@pytest.mark.parametrize("metric_type", METRICS)
def test_only_tensors_and_lists_of_them(metric_type: type) -> None:
    y_pred, y = cases(metric_type)
    for name, arguments in {"y_pred": (y_pred.numpy(), y), "y": (y_pred, y.numpy())}.items():
        with pytest.raises(TypeError, match=f"^{name} must be a torch.Tensor or a list of them, got ndarray"):
            metric_type()(*arguments)


@pytest.mark.parametrize("metric_type", METRICS)
def test_batches_and_lists_of_cases_give_the_same(metric_type: type) -> None:
    y_pred, y = cases(metric_type)
    whole, one_by_one, lists = metric_type(), metric_type(), metric_type()
    whole(y_pred, y)
    for case in range(CASES):
        one_by_one(MetaTensor(y_pred[case : case + 1]), MetaTensor(y[case : case + 1]))
    lists(list(y_pred), list(y))
    for metric in (one_by_one, lists):
        assert_equal(metric.aggregate("none"), whole.aggregate("none"))
        assert len(metric) == CASES
        assert type(metric.aggregate()) is torch.Tensor
    values = whole.aggregate("none")
    assert values.dtype == torch.float64
    assert len(values) == CASES
    assert_equal(whole.aggregate(), values.view(CASES, -1).nanmean(1).nanmean())
    assert_equal(whole.aggregate("mean_batch"), values.nanmean(0))


def test_values_are_those_of_the_functions() -> None:
    y_pred, y = cases(ECEMetric)
    for metric, values in (
        (ECEMetric(10, ignore_index=1), calibration_bins(y_pred, y, 10, ignore_index=1).expected_error()),
        (CECEMetric(foreground_only=False), calibration_bins(y_pred, y, 15, False, classwise=True).expected_error()),
        (NLLMetric(ignore_index=2), negative_log_likelihood(y_pred, y, ignore_index=2)),
        (BrierMetric(foreground_only=False), brier_score(y_pred, y, foreground_only=False)),
    ):
        metric(y_pred, y)
        assert_equal(metric.aggregate("none"), values)


@pytest.mark.parametrize("metric_type", [ECEMetric, CECEMetric])
def test_bins_per_case_and_pooled(metric_type: type) -> None:
    y_pred, y = cases(metric_type)
    metric = metric_type()
    metric(y_pred[:1], y[:1])
    metric(y_pred[1:], y[1:])
    expected = calibration_bins(y_pred, y, classwise=metric_type is CECEMetric)
    for actual, wanted in ((metric.case_bins, expected), (metric.bins, expected.pooled())):
        assert torch.equal(actual.count, wanted.count)
        assert torch.equal(actual.confidence, wanted.confidence)
        assert torch.equal(actual.accuracy, wanted.accuracy)
    assert metric.case_bins.count.dtype == torch.int64


def test_one_pass_gives_ece_and_cece() -> None:
    y_pred, y = cases(CalibrationMetric)
    both, ece, cece = CalibrationMetric(), ECEMetric(), CECEMetric()
    for metric in (both, ece, cece):
        metric(list(y_pred), list(y))
    for reduction in ("none", "mean"):
        together = both.aggregate(reduction)
        assert_equal(together["ece"], ece.aggregate(reduction))
        assert_equal(together["cece"], cece.aggregate(reduction))
    assert torch.equal(both.cece.bins.count, cece.bins.count)
    assert len(both) == CASES
    both.reset()
    assert len(both) == 0


def test_a_case_without_foreground_is_in_no_mean() -> None:
    y_pred, y = cases(ECEMetric)
    metric = ECEMetric()
    metric(y_pred, y)
    assert metric.aggregate("none").isnan().tolist() == [False, False, False, True]
    assert_equal(metric.aggregate(), metric.aggregate("none")[:3].mean())
    metric.reset()
    metric(y_pred[-1:], y[-1:])
    assert metric.aggregate().isnan()


@pytest.mark.parametrize("metric_type", [*METRICS, CalibrationMetric])
def test_in_an_ignite_engine(metric_type: type) -> None:
    y_pred, y = cases(metric_type)
    metric = metric_type()
    engine = Engine(lambda _, batch: batch)
    IgniteMetricHandler(metric_fn=metric).attach(engine, "value")
    engine.run([(y_pred[:2], y[:2]), (list(y_pred[2:]), list(y[2:]))], max_epochs=2)
    alone = metric_type()
    alone(y_pred, y)
    assert_equal(engine.state.metric_details["value"], alone.get_buffer())
    if metric_type is CalibrationMetric:
        for name, value in alone.aggregate().items():
            assert engine.state.metrics[name] == pytest.approx(value.item(), abs=1e-14)
    else:
        assert engine.state.metrics["value"] == pytest.approx(alone.aggregate().item(), abs=1e-14)


def test_errors() -> None:
    y_pred, y = cases(ECEMetric)
    metric = ECEMetric()
    with pytest.raises(ValueError, match="ECEMetric has no case to aggregate"):
        metric.aggregate()
    with pytest.raises(ValueError, match="same number of cases, got 4 and 3"):
        metric(list(y_pred), list(y[:3]))
    with pytest.raises(TypeError, match=r"y must be a torch\.Tensor or a list of them, got NoneType"):
        metric(y_pred)
    metric(y_pred, y)
    with pytest.raises(ValueError, match='reduction must be "mean", "mean_batch" or "none", got \'sum\''):
        metric.aggregate("sum")
