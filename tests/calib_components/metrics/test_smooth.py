"""Smooth ECE: its definition computed directly on voxels, the authors' package, and values in closed form."""

from __future__ import annotations

import math

import monai.metrics.metric
import numpy as np
import pytest
import relplot
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm

from calib_components.metrics import CalibrationBins, SmoothECEMetric, calibration_bins, smooth_calibration_error
from tests.calib_components.metrics.test_bins_large import LargestTensor

Array = NDArray[np.float64]


def as_input(confidence: Array, correct: Array) -> tuple[torch.Tensor, torch.Tensor]:
    """One case in which class 1 is predicted with these confidences, above 0.5."""
    p = torch.from_numpy(confidence)
    return torch.stack([1 - p, p])[None], torch.from_numpy(correct).long()[None, None]


def smooth_error(confidence: Array, correct: Array) -> float:
    bins = calibration_bins(*as_input(confidence, correct), num_bins=1920, region="all")
    return smooth_calibration_error(bins).item()


def direct_error(confidence: Array, correct: Array) -> float:
    """By definition: all voxels where they are, a sum over reflections, an integral over t, and a root."""

    def error(width: float) -> float:
        t = (np.arange(1000) + 0.5) / 1000
        smoothed = np.zeros_like(t)
        for reflection in (-2, 0, 2):  # the next ones are at least 2 away
            for sign in (1, -1):
                kernel = np.exp(-(((t[:, None] - sign * confidence - reflection) / width) ** 2) / 2)
                smoothed += norm.pdf(0) / width * kernel @ (confidence - correct) / len(confidence)
        return float(np.abs(smoothed).mean())

    return brentq(lambda width: error(width) - width, 0.001, 0.4, xtol=1e-7)


def draw(kind: str, number: int) -> tuple[Array, Array]:
    """Confidences of a calibrated or overconfident prediction, evenly spread over (0.5, 1) or near 1 like a network's.

    Of those near 1, two thirds are above 0.95.
    """
    rng = np.random.default_rng(0)
    spread, calibration = kind.split()
    p = rng.uniform(0.5, 1, number) if spread == "even" else 1 / (1 + np.exp(-rng.gamma(4, 1, number)))
    power = {"calibrated": 1.0, "overconfident": 0.6}[calibration]
    truth = p**power / (p**power + (1 - p) ** power)
    return p, (rng.uniform(size=number) < truth).astype(float)


KINDS = ["even calibrated", "even overconfident", "high calibrated", "high overconfident"]


@pytest.mark.parametrize("kind", KINDS)
def test_equals_its_definition_on_the_voxels(kind: str) -> None:
    confidence, correct = draw(kind, 1000)
    assert smooth_error(confidence, correct) == pytest.approx(direct_error(confidence, correct), abs=5e-5)


@pytest.mark.parametrize("number", [2000, 100_000])
@pytest.mark.parametrize("kind", KINDS)
def test_bins_change_little(kind: str, number: int) -> None:
    confidence, correct = draw(kind, number)
    index = np.floor(confidence * 2**18).astype(int)  # bins 137 times as narrow
    sums = [np.bincount(index, weights, 2**18) for weights in (None, confidence, correct)]
    fine = smooth_calibration_error(CalibrationBins(*(torch.from_numpy(values)[None] for values in sums))).item()
    assert smooth_error(confidence, correct) == pytest.approx(fine, abs=5e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_authors(kind: str) -> None:
    """Their widths are multiples of 1 / 1024, and their integral a sum over 200 points."""
    confidence, correct = draw(kind, 20_000)
    confidence = confidence.clip(max=0.998)  # they count confidences of 1 by half
    assert smooth_error(confidence, correct) == pytest.approx(relplot.smECE(confidence, correct), abs=1e-3)


def test_three_voxels_of_the_docstring() -> None:
    confidence, correct = np.array([0.9, 0.7, 0.6]), np.array([1.0, 1.0, 0.0])
    assert direct_error(confidence, correct) == pytest.approx(0.1392, abs=5e-5)
    assert smooth_error(confidence, correct) == pytest.approx(direct_error(confidence, correct), abs=1e-5)


def test_two_residuals_in_closed_form() -> None:
    # Half of the voxels at each of two centers of bins, residuals 0.2 and -0.2: with Gaussians d apart, the integral of
    # the absolute difference is 2 (2 Phi(d / 2s) - 1).
    low, high = (1279 + 0.5) / 1920, (1343 + 0.5) / 1920
    bins = CalibrationBins(*(torch.zeros(1, 1920, dtype=torch.float64) for _ in range(3)))
    for at, center, sign in ((1279, low, 1), (1343, high, -1)):
        bins.count[0, at] = 500
        bins.confidence_sum[0, at] = 500 * center
        bins.num_correct[0, at] = 500 * (center - 0.2 * sign)
    expected = brentq(lambda s: 0.2 * (2 * norm.cdf((high - low) / 2 / s) - 1) - s, 0.01, 0.2, xtol=1e-12)
    assert smooth_calibration_error(bins).item() == pytest.approx(expected, abs=1e-6)


def test_residuals_of_one_sign_do_not_depend_on_the_width() -> None:
    # Also at confidence 1, where the reflected half of the Gaussian must count.
    confidence = np.array([1.0] * 100 + [0.7] * 100)
    correct = np.array([1.0] * 90 + [0.0] * 10 + [1.0] * 60 + [0.0] * 40)
    assert smooth_error(confidence, correct) == pytest.approx(0.1, abs=1e-12)


def test_a_perfect_prediction_has_no_error() -> None:
    sums = torch.zeros(1, 1920, dtype=torch.float64)
    sums[0, -1] = 50
    assert smooth_calibration_error(CalibrationBins(sums.long(), sums, sums)).item() == 0


def test_an_edge_between_bins_does_not_matter() -> None:
    correct = np.array([1.0] * 500 + [1.0] * 100 + [0.0] * 400)
    errors, smooth = [], []
    for shift in (0, 0.002):
        confidence = np.array([0.599] * 500 + [0.601] * 500) + shift
        errors.append(calibration_bins(*as_input(confidence, correct), region="all").expected_error().item())
        smooth.append(smooth_error(confidence, correct))
    assert errors == pytest.approx([0.401, 0.002], abs=1e-9)
    # 0.2 d sqrt(2 / pi) / s = s for residuals d apart
    assert smooth == pytest.approx([math.sqrt(0.4 * 0.002 * norm.pdf(0))] * 2, abs=5e-4)


def test_cases_and_pooled() -> None:
    parts = [draw(kind, 1000) for kind in KINDS[:2]]
    y_pred, y = (torch.cat(values) for values in zip(*(as_input(*part) for part in parts), strict=True))
    bins = calibration_bins(y_pred, y, num_bins=1920, region="all")
    assert smooth_calibration_error(bins).tolist() == pytest.approx([smooth_error(*part) for part in parts], abs=1e-12)
    together = smooth_error(*(np.concatenate(values) for values in zip(*parts, strict=True)))
    assert smooth_calibration_error(bins.pooled()).item() == pytest.approx(together, abs=1e-12)


def test_errors() -> None:
    y_pred, y = cases()
    few, classwise = calibration_bins(y_pred, y), calibration_bins(y_pred, y, num_bins=1920, classwise=True)
    expected = r"bins: expected at least 1000 top-label bins \(B, bins\), got shape "
    for bins, shape in ((few, r"\(4, 15\)"), (classwise, r"\(4, 3, 1920\)")):
        with pytest.raises(ValueError, match=f"^{expected}{shape}: give num_bins=1920 to calibration_bins$"):
            smooth_calibration_error(bins)
    with pytest.raises(TypeError, match=r"^bins: expected CalibrationBins, got Tensor$"):
        smooth_calibration_error(few.count)  # type: ignore[arg-type]
    for options, message in (
        ({"ignore_index": 0.5}, "ignore_index: expected a whole number or None, got 0.5"),
        ({"sigmoid": 1}, "sigmoid: expected True or False, got 1"),
        ({"region": "nowhere"}, "region: expected .*"),
        ({"regions": "all"}, "regions: expected a list of regions, got 'all'"),
        ({"regions": ["all", "all"]}, "regions: expected each region once, got all, all"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            SmoothECEMetric(**options)
    assert SmoothECEMetric(foreground_only=False).region == SmoothECEMetric(region="all").region
    with pytest.raises(TypeError, match=r"^num_bins: expected an option of SmoothECEMetric"):
        SmoothECEMetric(num_bins=15)  # type: ignore[call-arg]


def cases() -> tuple[torch.Tensor, torch.Tensor]:
    """Four cases of three classes; the last one has no foreground."""
    generator = torch.Generator().manual_seed(0)
    y_pred = (2 * torch.randn(4, 3, 8, 7, 6, generator=generator)).softmax(1)
    y = torch.randint(3, (4, 1, 8, 7, 6), generator=generator)
    y[-1] = 0
    return y_pred, y


def test_regions_are_those_of_one_metric_each() -> None:
    y_pred, y = cases()
    regions = ["all", "predicted", "plausible(0.6)", [1]]
    metric = SmoothECEMetric(ignore_index=2, regions=regions)
    metric(y_pred[:1], y[:1])
    metric(y_pred[1:], y[1:])
    assert list(metric.regions) == ["all", "predicted", "plausible(0.6)", "structure_1"]
    assert metric.aggregate("none").isnan().tolist() == [False, False, False, True]
    for region, part in (("foreground", metric), *zip(regions, metric.regions.values(), strict=True)):
        bins = calibration_bins(y_pred, y, num_bins=1920, ignore_index=2, region=region)
        assert torch.equal(part.case_values().isnan(), bins.count.sum(1) == 0)
        torch.testing.assert_close(part.aggregate("none"), smooth_calibration_error(bins), equal_nan=True)
        torch.testing.assert_close(part.aggregate(), smooth_calibration_error(bins).nanmean())
    metric.reset()
    assert [len(part) for part in metric.parts] == [0] * 5


def test_sigmoid_channels() -> None:
    y_pred, y = cases()
    y_pred, y = y_pred[:, :2], torch.cat([y > 0, y > 1], 1)
    metric = SmoothECEMetric(region="all", sigmoid=True)
    metric(y_pred, y)
    bins = calibration_bins(y_pred, y, num_bins=1920, region="all", sigmoid=True)
    assert bins.count.sum(1).tolist() == [2 * 8 * 7 * 6] * 4
    torch.testing.assert_close(metric.aggregate("none"), smooth_calibration_error(bins))


def test_aggregate_gathers_all_regions_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered = []

    def gather(data: torch.Tensor, concat: bool) -> torch.Tensor:
        """Stands for two processes that have the same cases."""
        gathered.append(data.shape)
        return torch.cat([data, data])

    monkeypatch.setattr(monai.metrics.metric, "evenly_divisible_all_gather", gather)
    metric = SmoothECEMetric(regions=["all"])
    metric(*cases())
    metric.aggregate()
    assert gathered == [(4,), (4,)]
    assert len(metric.regions["all"].aggregate("none")) == len(metric.aggregate("none")) == 8
    assert len(gathered) == 2


def test_memory_does_not_grow_with_the_volume() -> None:
    largest = []
    for size in (64, 96):
        y_pred = torch.rand(1, 2, size, size, size).softmax(1)
        y = torch.ones(1, 1, size, size, size, dtype=torch.uint8)
        with LargestTensor(y_pred, y) as created:
            SmoothECEMetric(regions=["all", "predicted"])(y_pred, y)
        largest.append(created.bytes)
    assert largest[0] == largest[1]
