"""The metrics of calibration and their base: batches and lists, reductions, handlers, processes,
regions, scores.
"""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler
from torch.nn import functional as F

from calib_components import metrics
from calib_components.errors import InputError
from calib_components.metrics import (
    BrierMetric,
    CalibrationMetric,
    CECEMetric,
    DSCMetric,
    ECEMetric,
    HD95Metric,
    NLLMetric,
    Region,
    calibration_bins,
)
from calib_components.metrics.base import CaseMetric
from calib_components.metrics.region_measures import measure_regions
from calib_components.metrics.volumes import StructureMetric

ALL_METRICS = [getattr(metrics, name) for name in metrics.__all__ if name.endswith("Metric")]
CASES = 4


def new(metric_type: type) -> CaseMetric:
    """A metric with the options that it needs."""
    if issubclass(metric_type, StructureMetric):
        return metric_type({"first": [1], "both": [1, 2]})
    return metric_type(region="predicted") if issubclass(metric_type, ECEMetric) else metric_type()


def cases(metric_type: type = ECEMetric) -> tuple[torch.Tensor, torch.Tensor]:
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
def test_batches_lists_and_engines_give_the_same(metric_type: type) -> None:
    y_pred, y = cases(metric_type)
    whole, one_by_one, lists, handled = (new(metric_type) for _ in range(4))
    whole(y_pred, y)
    for case in range(CASES):
        one_by_one(MetaTensor(y_pred[case : case + 1]), MetaTensor(y[case : case + 1]))
    lists(list(y_pred), list(y))
    engine = Engine(lambda _, batch: batch)
    IgniteMetricHandler(metric_fn=handled).attach(engine, "value")
    engine.run([(y_pred[:2], y[:2]), (list(y_pred[2:]), list(y[2:]))], max_epochs=2)
    values = whole.aggregate("none")
    assert values.dtype == torch.float64
    assert len(values) == CASES
    for metric in (one_by_one, lists, handled):
        assert_equal(metric.aggregate("none"), values)
        assert type(metric.aggregate()) is torch.Tensor
    assert engine.state.metrics["value"] == pytest.approx(whole.aggregate().item(), abs=1e-14)
    assert_equal(engine.state.metric_details["value"], whole.get_buffer())
    assert_equal(whole.aggregate(), values.reshape(CASES, -1).nanmean(1).nanmean())
    if metric_type is not CECEMetric:  # which has a test of its own
        assert_equal(whole.aggregate("mean_batch"), values.nanmean(0))


@pytest.mark.parametrize("metric_type", ALL_METRICS)
def test_reset_and_errors(metric_type: type) -> None:
    y_pred, y = cases(metric_type)
    metric = new(metric_type)
    with pytest.raises(InputError, match=metric_type.__name__):
        metric.aggregate()
    metric(y_pred, y)
    with pytest.raises(InputError, match="reduction"):
        metric.aggregate("sum")
    metric.reset()
    with pytest.raises(InputError, match="no case"):
        metric.aggregate()
    with pytest.raises(InputError, match="as many cases as y_pred, 4, got 3"):
        metric(list(y_pred), list(y[:3]))
    with pytest.raises(TypeError, match="y must be a"):
        metric(y_pred, y.numpy())  # type: ignore[arg-type]


def test_a_call_that_fails_leaves_no_trace() -> None:
    y_pred, y = cases()
    metric = CalibrationMetric(region="predicted", regions=["all"])
    with pytest.raises(InputError, match="y_pred"):
        metric([y_pred[0], 2 * y_pred[1]], list(y[:2]))
    metric(y_pred[2:], y[2:])
    assert len(metric.aggregate("none")) == len(metric.regions["all"].nll.aggregate("none")) == 2


@pytest.mark.parametrize("metric_type", [ECEMetric, CECEMetric, CalibrationMetric])
def test_calibration_errors_require_a_region(metric_type: type) -> None:
    choices = "region is required: foreground, all, predicted, near, or class indices. Take 'all'"
    for options in ({}, {"region": None}, {"num_bins": 10}):
        with pytest.raises(InputError, match=choices):
            metric_type(**options)
    assert metric_type(foreground_only=True).region.name == "foreground"
    assert metric_type(foreground_only=False).region.name == "all"


def test_regions_of_scores_and_parts() -> None:
    assert {part.region.name for part in (NLLMetric(), BrierMetric())} == {"foreground"}
    metric = CalibrationMetric(region="predicted")
    parts = metric, metric.cece, metric.nll, metric.brier
    assert {part.region.name for part in parts} == {"predicted"}


def test_mean_batch_of_cece_is_one_value_per_class() -> None:
    y_pred, y = cases()
    metric = CECEMetric(region="foreground")
    metric(y_pred, y)
    bins = calibration_bins(y_pred, y, classwise=True)
    assert metric.case_bins.to_dict() == bins.to_dict()
    assert metric.bins.to_dict() == bins.pooled().to_dict()
    expected = torch.stack([each.expected_error() for each in bins.per_class()], 1).nanmean(0)
    torch.testing.assert_close(metric.aggregate("mean_batch"), expected)
    torch.testing.assert_close(expected.mean(), metric.aggregate())


def test_one_pass_gives_all_measures_of_all_regions() -> None:
    y_pred, y = cases()
    regions = ["all", "near(3)", Region("near", 3, spacing=(1, 1, 2)), [1, 2]]
    options = {"num_bins": 10, "ignore_index": 2}
    metric = CalibrationMetric(region="predicted", regions=regions, **options)
    assert list(metric.regions) == ["all", "near(3)", "near(3 at 1x1x2)", "structure_1_2"]
    metric(list(y_pred), list(y))
    found = [metric, *metric.regions.values()]
    for region, of_region in zip(["predicted", *regions], found, strict=True):
        for kind, part in ((ECEMetric, of_region), (CECEMetric, of_region.cece)):
            alone = kind(region=region, **options)
            alone(y_pred, y)
            for reduction in ("none", "mean_batch", "mean"):
                assert_equal(part.aggregate(reduction), alone.aggregate(reduction))
                assert_equal(part.aggregate_if_true(reduction), alone.aggregate_if_true(reduction))
            assert part.bins.to_dict() == alone.bins.to_dict()
        for kind, part in ((NLLMetric, of_region.nll), (BrierMetric, of_region.brier)):
            alone = kind(region=region, ignore_index=2)
            alone(y_pred, y)
            assert_equal(part.aggregate("none"), alone.aggregate("none"))
    metric.reset()
    with pytest.raises(InputError, match="no case"):
        metric.regions["all"].nll.aggregate()


def test_unsuitable_options() -> None:
    with pytest.raises(InputError, match="region"):
        CalibrationMetric(region="all", regions=["all", "some"])
    for num_bins in (0, 2.5, 10**9):
        with pytest.raises(InputError, match="num_bins"):
            ECEMetric(num_bins, region="all")(*cases())  # type: ignore[arg-type]


def test_channel_of_sigmoids_without_voxels_is_left_out_of_the_mean_over_channels() -> None:
    """As the enhancing part of a tumour that has none: the other channels have an error."""
    metric = CECEMetric(region="foreground", sigmoid=True)  # of each channel
    metric(torch.tensor([[[0.2, 0.7], [0.1, 0.3]]]), torch.tensor([[[0, 1], [0, 0]]]))
    assert metric.aggregate().item() == pytest.approx(0.3)


# Scores, and magnitudes of logits


def nll(y_pred: torch.Tensor, y: torch.Tensor, region: str = "foreground") -> float:
    metric = NLLMetric(region=region)
    metric(y_pred, y)
    return metric.aggregate().item()


@pytest.mark.filterwarnings("ignore:y_pred holds only 0 and 1")
def test_a_probability_of_zero_has_a_finite_nll() -> None:
    impossible = torch.tensor([1.0, 0.0]).view(1, 2, 1)
    assert nll(impossible, torch.ones(1, 1, 1)) == pytest.approx(87.336, abs=1e-3)
    assert nll(impossible.half(), torch.ones(1, 1, 1)) == pytest.approx(25 * math.log(2))
    # Of a sigmoid; the largest number below 1 is 2^-11 or 2^-8 less.
    for dtype, bits in ((torch.float16, 12), (torch.bfloat16, 9)):
        certain = torch.ones(1, 1, 1, dtype=dtype)
        assert nll(certain, 0 * certain, "all") == pytest.approx(bits * math.log(2))


@pytest.mark.parametrize(
    ("p", "y", "likelihoods"),
    [
        ([[0.0, 1.0, 1.0, 0.95, 0.5]], [1, 0, 1, 0, 1], [0.01, 0.1, 1, 0.1, 0.5]),
        # A softmax has no highest probability
        ([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]], [1, 1, 1], [0.01, 1, 0.5]),
    ],
)
def test_probabilities_that_were_rounded_count_as_what_they_can_have_been(
    p: list, y: list, likelihoods: list
) -> None:
    given, limits = (torch.tensor([p]), torch.tensor([[y]])), {"lowest": 0.01, "highest": 0.9}
    found = measure_regions(*given, {Region("all"): ["nll"]}, **limits)[Region("all")]
    assert found.scores["nll"].item() == pytest.approx(-np.log(likelihoods).mean())


TWO_RANKS = """
import torch, torch.distributed as dist
from calib_components.metrics import CalibrationMetric, calibration_bins
dist.init_process_group("gloo")
generator = torch.Generator().manual_seed(0)
y_pred, y = torch.randn(3, 2, 5, 4, generator=generator).softmax(1), torch.ones(3, 1, 5, 4)
own = [[0, 1], [2]][dist.get_rank()]  # cases of this process
metric = CalibrationMetric(region="predicted", regions=["all", 1])
metric(y_pred[own], y[own])
found = metric.regions["all"].cece.aggregate("none")
assert len(metric.regions["structure_1"].nll.aggregate("none")) == 3
assert len(metric.brier.aggregate("none")) == 3
dist.destroy_process_group()
expected = calibration_bins(y_pred, y, region="all", classwise=True).expected_error()
torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
"""


@pytest.mark.slow
def test_several_processes_gather_their_cases() -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc_per_node=2", "--no-python"]
    done = subprocess.run(
        [*launcher, sys.executable, "-c", TWO_RANKS], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
