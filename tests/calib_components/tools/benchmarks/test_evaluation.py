"""What the benchmark of an evaluation times side by side are the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from calib_components.tools.benchmarks import published
from calib_components.tools.benchmarks.evaluation import CaseMeasures
from tests.helpers import ACDC

STRUCTURES = ("RV", "MYO", "LV")


@pytest.fixture(scope="module")
def measured() -> tuple[dict[str, Any], dict[str, Any]]:
    """The metrics after a small case, and the values of published code."""
    case = CaseMeasures(ACDC, 80, 6)
    case.measure(case.metrics)
    return case.metrics, case.measure_as_published(case.metrics)


def test_segmentation_is_the_same(measured: Any) -> None:
    metrics, values = measured
    for name in ("dsc", "hd95", "expected_dsc"):
        expected = [values[f"{name}_{structure}"] for structure in STRUCTURES]
        np.testing.assert_allclose(metrics[name].aggregate("none")[0], expected, rtol=1e-6)
    for name, found in metrics["volume"].volumes._asdict().items():
        expected = [values[f"{name}_{structure}"] for structure in STRUCTURES]
        np.testing.assert_allclose(found[0], expected, rtol=1e-6)


def test_calibration_is_the_same_in_all_regions(measured: Any) -> None:
    metrics, values = measured
    regions = {"foreground": metrics["ece"], **metrics["ece"].regions}
    assert len(regions) == 10
    for region, metric in regions.items():
        for name, part in (("ece", metric), ("cece", metric.cece), ("nll", metric.nll), ("brier", metric.brier)):
            assert part.aggregate().item() == pytest.approx(values[f"{name}_{region}"], abs=1e-6), (name, region)
        assert 0.001 < metric.aggregate() < 0.3  # such that 1e-6 means something


def test_smooth_error_is_the_same_up_to_its_grid(measured: Any) -> None:
    metrics, values = measured
    for region, metric in {"foreground": metrics["smooth_ece"], **metrics["smooth_ece"].regions}.items():
        assert metric.aggregate().item() == pytest.approx(values[f"smooth_ece_{region}"], abs=5e-4), region


def test_thresholds_ranking_and_logits_are_the_same(measured: Any) -> None:
    metrics, values = measured
    for i, structure in enumerate(STRUCTURES):
        for name in ("predicted", "true_positive"):
            # NumPy compares in float32, the metric in the type of the probabilities: the same.
            found = getattr(metrics["thresholds"].counts, name)[0, i]
            np.testing.assert_array_equal(found, values[f"{name}_{structure}"])
    # Equal confidences, such as 1, are in the order of the voxels there, and here the mean over all orders.
    assert metrics["selective"].aggregate().item() == pytest.approx(values["aurc"], rel=0.05)
    np.testing.assert_allclose(metrics["logits"].aggregate("none")[0], values["logits"], rtol=1e-6)


def test_distance_without_medpy_equals_a_small_one_by_hand() -> None:
    predicted, true = np.zeros((1, 10), bool), np.zeros((1, 10), bool)
    predicted[0, [0, 9]], true[0, 0] = True, True
    assert published._hd95(predicted, true) == pytest.approx(8.1)  # the 95th percentile of 0, 9 and 0
