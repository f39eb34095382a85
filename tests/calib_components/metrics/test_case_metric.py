"""What all metrics share: batches or lists of cases, reductions, reset, MONAI's handlers, errors."""

from __future__ import annotations

import csv
import inspect
import logging
import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import ignite.metrics
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler, MetricsSaver, StatsHandler
from torch.nn import functional as F

from calib_components import metrics
from calib_components.metrics import (
    BrierMetric,
    CalibrationMetric,
    CECEMetric,
    DSCMetric,
    ECEMetric,
    ExpectedDSCMetric,
    HD95Metric,
    LogitMagnitudeMetric,
    NLLMetric,
    RiskCoverageMetric,
    ThresholdMetric,
    VolumeMetric,
    adaptive_calibration_error,
    brier_score,
    calibration_bins,
    negative_log_likelihood,
)
from calib_components.metrics.case_metric import CaseMetric

ALL_METRICS = [getattr(metrics, name) for name in metrics.__all__ if name.endswith("Metric")]
OF_STRUCTURES = [VolumeMetric, ExpectedDSCMetric, ThresholdMetric]
CASES = 4


def new(metric_type: type) -> CaseMetric:
    """A metric with the options that it needs."""
    return metric_type({"first": [1], "both": [1, 2]}) if metric_type in OF_STRUCTURES else metric_type()


def cases(metric_type: type) -> tuple[torch.Tensor, torch.Tensor]:
    """Four cases of three classes; the last one has no foreground."""
    generator = torch.Generator().manual_seed(0)
    y_pred = (2 * torch.randn(CASES, 3, 8, 7, 6, generator=generator)).softmax(1)
    y = torch.randint(3, (CASES, 1, 8, 7, 6), generator=generator)
    y[-1] = 0
    if metric_type in (DSCMetric, HD95Metric):
        y_pred = F.one_hot(y_pred.argmax(1), 3).movedim(-1, 1)
    return y_pred, y


def assert_equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14, equal_nan=True)


@pytest.mark.parametrize("metric_type", ALL_METRICS)
def test_only_tensors_and_lists_of_them(metric_type: type) -> None:
    y_pred, y = cases(metric_type)
    for name, arguments in {"y_pred": (y_pred.numpy(), y), "y": (y_pred, y.numpy())}.items():
        with pytest.raises(TypeError, match=rf"^{name}: expected a torch\.Tensor or a list of them, got ndarray$"):
            new(metric_type)(*arguments)


@pytest.mark.parametrize("metric_type", ALL_METRICS)
def test_batches_and_lists_of_cases_give_the_same(metric_type: type) -> None:
    y_pred, y = cases(metric_type)
    whole, one_by_one, lists = new(metric_type), new(metric_type), new(metric_type)
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
    assert_equal(whole.aggregate(), values.reshape(CASES, -1).nanmean(1).nanmean())
    if metric_type is not CECEMetric:  # which has a test of its own
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


@pytest.mark.parametrize("metric_type", ALL_METRICS)
def test_in_an_ignite_engine(metric_type: type) -> None:
    y_pred, y = cases(metric_type)
    metric = new(metric_type)
    engine = Engine(lambda _, batch: batch)
    IgniteMetricHandler(metric_fn=metric).attach(engine, "value")
    engine.run([(y_pred[:2], y[:2]), (list(y_pred[2:]), list(y[2:]))], max_epochs=2)
    alone = new(metric_type)
    alone(y_pred, y)
    assert_equal(engine.state.metric_details["value"], alone.get_buffer())
    assert list(engine.state.metrics) == ["value"]
    assert type(engine.state.metrics["value"]) is float
    assert engine.state.metrics["value"] == pytest.approx(alone.aggregate().item(), abs=1e-14)


COLUMNS = {**dict.fromkeys([DSCMetric, HD95Metric, *OF_STRUCTURES], 2), LogitMagnitudeMetric: 9}  # all others have one


@pytest.mark.parametrize("metric_type", ALL_METRICS)
def test_handlers_of_monai_write_numbers(metric_type: type, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    y_pred, y = cases(metric_type)
    y[-1] = y[0]  # for an undefined case, MONAI's summary itself warns of the mean of nothing
    engine = Engine(lambda _, batch: batch)
    for name in ("ece", "cece", "dsc"):
        ignite.metrics.Average(output_transform=lambda _: 0.5).attach(engine, name)  # somebody else's
    metric = new(metric_type)
    IgniteMetricHandler(metric_fn=metric, output_transform=lambda output: output["pair"]).attach(engine, "value")
    caplog.set_level(logging.INFO, engine.logger.name)
    StatsHandler(iteration_log=False, name=None).attach(engine)
    MetricsSaver(str(tmp_path), "*", "*", batch_transform=lambda batch: batch["images"], summary_ops="*").attach(engine)
    images = [{"filename_or_obj": f"case{i}"} for i in range(CASES)]
    batches = [
        {"pair": (y_pred[:2], y[:2]), "images": images[:2]},
        {"pair": (list(y_pred[2:]), list(y[2:])), "images": images[2:]},
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.run(batches)

    value, details = metric.aggregate().item(), metric.get_buffer()
    assert engine.state.metrics == {"ece": 0.5, "cece": 0.5, "dsc": 0.5, "value": value}
    assert all(type(number) is float for number in engine.state.metrics.values())
    assert f"value: {value:.4f}" in caplog.text
    assert "tensor" not in caplog.text

    def rows(name: str) -> list[list[str]]:
        with open(tmp_path / name, newline="") as file:
            return list(csv.reader(file))

    assert {name: float(number) for name, number in rows("metrics.csv")} == engine.state.metrics
    header, *raw = rows("value_raw.csv")
    assert header == ["filename", *(f"class{k}" for k in range(COLUMNS.get(metric_type, 1))), "mean"]
    assert [row[0] for row in raw] == ["case0", "case1", "case2", "case3"]
    written = torch.tensor([[float(cell) for cell in row[1:-1]] for row in raw], dtype=torch.float64)
    torch.testing.assert_close(written, details.reshape(CASES, -1), rtol=0, atol=6e-5, equal_nan=True)
    _, *summary = rows("value_summary.csv")
    assert len(summary) == len(header) - 1
    assert all(math.isfinite(float(cell)) for row in summary for cell in row[1:])


@pytest.mark.parametrize("metric_type", ALL_METRICS)
def test_without_a_case_there_is_nothing_to_aggregate(metric_type: type) -> None:
    with pytest.raises(ValueError, match=f"^{metric_type.__name__}: expected at least one case .*got none$"):
        new(metric_type).aggregate()


def test_options_and_their_defaults() -> None:
    scoring = {"foreground_only": None, "ignore_index": None, "region": None, "sigmoid": False}
    calibration = {"num_bins": 15, **scoring}
    further = {"regions": (), "structures": None, "temperature": None, "draws": 0, "lowest": 0.0, "highest": 1.0}
    expected: dict[Callable, dict] = {
        **dict.fromkeys([ECEMetric, CECEMetric, adaptive_calibration_error], calibration),
        CalibrationMetric: {**calibration, **further},
        calibration_bins: {**calibration, "classwise": False},
        **dict.fromkeys([NLLMetric, BrierMetric, negative_log_likelihood, brier_score], scoring),
        DSCMetric: {"include_background": False},
        HD95Metric: {"include_background": False, "spacing": None},
        LogitMagnitudeMetric: {"ignore_index": None},
        **{each: {"ignore_index": None, "sigmoid": False} for each in OF_STRUCTURES},
        RiskCoverageMetric: {"region": "all", "ignore_index": None, "sigmoid": False},
    }
    for function, options in expected.items():
        parameters = inspect.signature(function).parameters.values()
        assert {each.name: each.default for each in parameters if each.default is not each.empty} == options


def test_a_list_beside_a_batch() -> None:
    y_pred, y = cases(ECEMetric)
    metric = ECEMetric()
    metric(list(y_pred), y)
    expected = ECEMetric()
    expected(y_pred, y)
    assert_equal(metric.aggregate("none"), expected.aggregate("none"))


def test_after_a_reset_another_number_of_classes() -> None:
    y_pred, y = cases(ECEMetric)
    metric = ECEMetric()
    metric(y_pred, y)
    metric.reset()
    metric(y_pred[:, :2] / y_pred[:, :2].sum(1, keepdim=True), y.clamp(max=1))
    assert len(metric) == CASES


def test_errors() -> None:
    y_pred, y = cases(ECEMetric)
    metric = ECEMetric()
    with pytest.raises(ValueError, match=r"^y: expected as many cases as y_pred, 4, got 3$"):
        metric(list(y_pred), list(y[:3]))
    with pytest.raises(TypeError, match=r"^y: expected a torch\.Tensor or a list of them, got NoneType$"):
        metric(y_pred)
    metric(y_pred, y)
    with pytest.raises(ValueError, match=r'^reduction: expected "mean", "mean_batch" or "none", got \'sum\'$'):
        metric.aggregate("sum")
    for metric in (CECEMetric(), CalibrationMetric()):
        metric(y_pred, y)
        with pytest.raises(ValueError, match=r"^reduction: expected .*got 'sum'$"):
            metric.aggregate("sum")


@pytest.mark.parametrize("metric", [DSCMetric, HD95Metric, LogitMagnitudeMetric])
def test_metrics_without_sigmoid_say_what_they_take(metric: Callable) -> None:
    with pytest.raises(
        TypeError, match=r"DSC and HD95 take masks, after a sigmoid and a threshold; the logit magnitude"
    ):
        metric(sigmoid=True)


@pytest.mark.parametrize("metric_type", ALL_METRICS)
def test_another_metric_goes_on_from_what_is_stored(metric_type: type) -> None:
    y_pred, y = cases(metric_type)
    first, rest, all_cases = (new(metric_type) for _ in range(3))
    first(y_pred[:1], y[:1])
    rest(y_pred[1:], y[1:])
    all_cases(y_pred, y)
    joined = new(metric_type)
    for part in (first, rest):
        joined.extend(*part.stored_tensors())
    expected = all_cases.stored_tensors()
    assert all(len(tensor) == CASES for tensor in expected)
    torch.testing.assert_close(joined.stored_tensors(), expected, rtol=0, atol=0, equal_nan=True)


TWO_RANKS = """
import torch, torch.distributed as dist
from calib_components.metrics import CalibrationMetric
dist.init_process_group("gloo")
generator = torch.Generator().manual_seed(0)
y_pred, y = torch.randn(3, 2, 5, 4, generator=generator).softmax(1), torch.ones(3, 1, 5, 4)
own = [[0, 1], [2]][dist.get_rank()]  # cases of this process
metric, alone = CalibrationMetric(regions=["all"]), CalibrationMetric(regions=["all"])
metric(y_pred[own], y[own])
for _ in range(2):  # before and after all processes have gathered
    for stored, case in zip(zip(*metric.stored_tensors(), strict=True), own, strict=True):
        alone(y_pred[case : case + 1], y[case : case + 1])
        assert all(map(torch.equal, stored, (values[0] for values in alone.stored_tensors())))
        alone.reset()
    assert len(metric.regions["all"].aggregate("none")) == 3
dist.destroy_process_group()
"""


def test_each_process_stores_its_own_cases() -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
    done = subprocess.run([*launcher, sys.executable, "-c", TWO_RANKS], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_call_that_fails_leaves_no_trace() -> None:
    metric, wrong = ECEMetric(), torch.full((4, 3), 2.0)
    with pytest.raises(ValueError, match=r"^y_pred: expected probabilities, got "):
        metric([torch.full((4, 3), 0.25), wrong], 2 * [torch.tensor([[0, 1, 3]])])
    metric([torch.full((2, 3), 0.5)], [torch.tensor([[0, 1, 1]])])  # of another number of classes
    assert len(metric.aggregate("none")) == 1
