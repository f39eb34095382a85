"""Calibration bins and the errors computed from them: golden values, cases worked by hand,
properties, wrong bins.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import CalibrationErrorMetric
from sklearn.calibration import calibration_curve
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from calib_components.errors import InputError
from calib_components.metrics import (
    CalibrationBins,
    Region,
    calibration_bins,
    voxels,
)
from calib_components.metrics.region_measures import measure_regions
from tests.calib_components.metrics import by_definition
from tests.helpers import ROOT, SHARED

GOLDEN = SHARED / "golden"
only_0_and_1 = pytest.mark.filterwarnings("ignore:y_pred holds only 0 and 1")


def random_case(
    seed: int, shape: tuple[int, ...] = (1, 4, 9, 7, 5)
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.randn(shape, generator=generator).mul(2).softmax(1)
    labels = torch.randint(shape[1], (shape[0], 1, *shape[2:]), generator=generator)
    return probabilities, labels


def golden(name: str) -> tuple[dict[str, np.ndarray], torch.Tensor, torch.Tensor]:
    path = GOLDEN / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"golden values not found: {path}")
    values = dict(np.load(path))
    probabilities = torch.from_numpy(values["logits"]).softmax(1).movedim(1, 0)[None]
    return values, probabilities, torch.from_numpy(values["labels"])[None, None]


@pytest.mark.parametrize("name", ["metrics_k2", "metrics_k4"])
@pytest.mark.parametrize("num_bins", [10, 15, 20])
@pytest.mark.parametrize("voxels", ["foreground", "all"])
def test_ece_and_cece_equal_the_authors(name: str, num_bins: int, voxels: str) -> None:
    values, y_pred, y = golden(name)
    for measure, classwise in (("ece", False), ("cece", True)):
        bins = calibration_bins(
            y_pred, y, num_bins, foreground_only=voxels == "foreground", classwise=classwise
        )
        expected = values[f"{measure}_{voxels}/bins{num_bins}"].item()
        assert bins.expected_error().item() == pytest.approx(expected, abs=1e-6)


# Two classes, six voxels, four bins of width 1/4; probability of class 1 and the label:
#   voxel            0     1     2     3      4    5
HAND_P1 = (0.000, 0.25, 0.50, 0.625, 1.0, 0.875)
HAND_Y = (0, 1, 1, 1, 1, 0)
#   predicted        0     0     0 (tie)  1   1    1
#   top confidence   1.0   0.75  0.5  0.625  1.0  0.875
#   correct          yes   no    no   yes    yes  no
#   bin of the top   3     2     1    2      3    3


def hand_case() -> tuple[torch.Tensor, torch.Tensor]:
    p1 = torch.tensor(HAND_P1)
    return torch.stack([1 - p1, p1])[None], torch.tensor(HAND_Y).view(1, 1, -1)


def test_top_label_bins_by_hand() -> None:
    bins = calibration_bins(*hand_case(), num_bins=4, foreground_only=False)
    assert bins.count.tolist() == [[0, 1, 2, 3]]
    assert bins.confidence_sum.tolist() == [[0, 0.5, 1.375, 2.875]]
    assert bins.num_correct.tolist() == [[0, 0, 1, 2]]
    assert (bins.count.dtype, bins.confidence_sum.dtype) == (torch.int64, torch.float64)
    assert str(bins.confidence.tolist()) == str([[math.nan, 0.5, 1.375 / 2, 2.875 / 3]])
    assert str(bins.accuracy.tolist()) == str([[math.nan, 0.0, 0.5, 2 / 3]])
    assert bins.expected_error().item() == pytest.approx((0.5 + 0.375 + 0.875) / 6)
    assert bins.average_error().item() == pytest.approx((0.5 + 0.375 / 2 + 0.875 / 3) / 3)
    without_0 = calibration_bins(*hand_case(), num_bins=4, foreground_only=False, ignore_index=0)
    assert without_0.count.tolist() == [[0, 1, 2, 1]]


def test_classwise_bins_by_hand() -> None:
    bins = calibration_bins(*hand_case(), num_bins=4, foreground_only=False, classwise=True)
    assert bins.count.tolist() == [[[2, 2, 1, 1], [2, 1, 1, 2]]]
    assert bins.confidence_sum.tolist() == [[[0.125, 0.875, 0.75, 1.0], [0.25, 0.5, 0.625, 1.875]]]
    assert bins.num_correct.tolist() == [[[1, 0, 0, 1], [1, 1, 1, 1]]]
    class_errors = [(0.875 + 0.875 + 0.75 + 0) / 6, (0.75 + 0.5 + 0.375 + 0.875) / 6]
    assert bins.expected_error(mean=False)[0].tolist() == pytest.approx(class_errors)
    assert bins.expected_error().item() == pytest.approx(sum(class_errors) / 2)
    assert bins.per_class()[1].count.tolist() == [[2, 1, 1, 2]]


@only_0_and_1
@pytest.mark.parametrize("num_bins", [1, 3, 10, 15, 20, 25, 49, 100])
def test_float64_edges_belong_to_the_lower_bin(num_bins: int) -> None:
    for edges in (np.arange(num_bins + 1) / num_bins, np.linspace(0, 1, num_bins + 1)):
        bins = bins_of_class_0(torch.from_numpy(edges), num_bins)
        assert bins.count[0].tolist() == [2] + [1] * (num_bins - 1)


def bins_of_class_0(p: torch.Tensor, num_bins: int) -> CalibrationBins:
    y_pred, y = torch.stack([p, 1 - p])[None], torch.zeros(1, 1, len(p))
    return calibration_bins(y_pred, y, num_bins, region="all", classwise=True).per_class()[0]


@only_0_and_1
@given(st.integers(1, 200), st.floats(0, 1, width=32), st.booleans())
def test_bin_of_a_float32_is_exact(num_bins: int, p: float, near_an_edge: bool) -> None:
    if near_an_edge:
        p = float(np.float32(round(p * num_bins) / num_bins))
    bins = bins_of_class_0(torch.tensor([p]), num_bins)
    exact = math.ceil(Fraction(p) * num_bins) - 1
    assert bins.count[0].argmax().item() == max(exact, 0)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.permutations(range(5)), st.booleans())
def test_parts_of_a_volume_in_any_order_add_up_to_the_whole(
    seed: int, order: list[int], classwise: bool
) -> None:
    y_pred, y = random_case(seed, (2, 3, 10, 6))
    whole = calibration_bins(y_pred, y, classwise=classwise)
    parts = [
        calibration_bins(y_pred[:, :, i::5], y[:, :, i::5], classwise=classwise) for i in order
    ]
    merged = parts[0] + parts[1] + parts[2] + parts[3] + parts[4]
    assert_same_bins(merged, whole)
    torch.testing.assert_close(
        merged.expected_error(), whole.expected_error(), rtol=0, atol=1e-14, equal_nan=True
    )


def test_json_is_exact() -> None:
    bins = calibration_bins(*random_case(4), classwise=True)
    read = CalibrationBins.from_dict(json.loads(json.dumps(bins.to_dict())))
    for name, field in vars(read).items():
        assert torch.equal(field, getattr(bins, name))
        assert field.dtype == getattr(bins, name).dtype


def assert_same_bins(actual: CalibrationBins, expected: CalibrationBins) -> None:
    assert torch.equal(actual.count, expected.count)
    assert torch.equal(actual.num_correct, expected.num_correct)
    torch.testing.assert_close(
        actual.confidence_sum, expected.confidence_sum, rtol=1e-12, atol=1e-12
    )


LABEL_TYPES = [torch.uint8, torch.int16, torch.int64, torch.float16, torch.float32, torch.bool]


@pytest.mark.parametrize("dtype", LABEL_TYPES)
def test_labels_of_any_type_as_index_or_one_hot(dtype: torch.dtype) -> None:
    y_pred, y = random_case(5)
    one_hot = F.one_hot(y[:, 0], 4).movedim(-1, 1)
    for given_y in [one_hot] if dtype == torch.bool else [one_hot, y, y[:, 0]]:
        assert_same_bins(calibration_bins(y_pred, given_y.to(dtype)), calibration_bins(y_pred, y))


def test_rounding_errors_are_accepted() -> None:
    bins = bins_of_class_0(torch.tensor([1.000001, -1e-6]), 15)
    assert bins.count[0, [0, -1]].tolist() == [1, 1]


@pytest.mark.parametrize("classwise", [False, True])
def test_maximum_and_adaptive_error_of_scikit_learn_and_numpy(classwise: bool) -> None:
    probabilities, labels = random_case(5, (2, 3, 20, 20, 10))
    bins = calibration_bins(probabilities, labels, 15, classwise=classwise, region="all")
    narrow = calibration_bins(probabilities, labels, 10_000, classwise=classwise, region="all")
    equal = narrow.with_equal_counts(12)
    assert equal.count.numpy() == pytest.approx(np.full(equal.count.shape, 4000 / 12))
    largest, adaptive = [], []
    for p, y in zip(probabilities.numpy(), labels.numpy(), strict=True):
        parts = [(p[k].ravel(), (y[0] == k).ravel()) for k in range(3)]
        if not classwise:
            parts = [(p.max(0).ravel(), (p.argmax(0) == y[0]).ravel())]
        curves = [calibration_curve(right, q, n_bins=15) for q, right in parts]
        largest.append(np.mean([np.abs(one - other).max() for one, other in curves]))
        curves = [calibration_curve(right, q, n_bins=12, strategy="quantile") for q, right in parts]
        adaptive.append(np.mean([np.abs(one - other).mean() for one, other in curves]))
    assert bins.maximum_error().numpy() == pytest.approx(largest)
    # scikit-learn's quantiles leave up to a voxel more or less in a bin
    assert equal.expected_error().numpy() == pytest.approx(adaptive, abs=2e-3)
    ranks = np.argsort(parts[-1][0])
    groups = [(parts[-1][0][part], parts[-1][1][part]) for part in np.array_split(ranks, 10)]
    by_numpy = np.mean([abs(q.mean() - right.mean()) for q, right in groups])
    found = narrow.with_equal_counts(10).expected_error(mean=False)[-1]
    assert found.flatten()[-1].item() == pytest.approx(by_numpy, abs=1e-4)


def test_voxels_of_one_probability_are_divided_in_proportion() -> None:
    y_pred = torch.tensor([[[0.4] * 4, [0.6] * 4]])
    equal = calibration_bins(y_pred, torch.tensor([[[1, 1, 1, 0]]]), 100, region="all")
    equal = equal.with_equal_counts(2)
    assert equal.count.tolist() == [[2, 2]]
    assert equal.accuracy.tolist() == [[0.75, 0.75]]
    empty = calibration_bins(y_pred, torch.zeros(1, 1, 4), region="foreground")
    assert empty.maximum_error().isnan().all()
    assert empty.with_equal_counts(3).expected_error().isnan().all()


def test_only_bins_of_the_same_shape_are_added() -> None:
    y_pred, y = random_case(10, (2, 4, 5, 6))
    top, classwise = calibration_bins(y_pred, y), calibration_bins(y_pred, y, classwise=True)
    for other in (classwise, top.pooled()):
        with pytest.raises(InputError, match="cannot be added"):
            top + other
    with pytest.raises(InputError, match="one shape"):
        CalibrationBins(top.count, top.confidence_sum, classwise.num_correct)
    with pytest.raises(InputError, match="one shape"):
        CalibrationBins(top.count[0], top.confidence_sum[0], top.num_correct[0])
    with pytest.raises(InputError, match="one shape"):
        top.per_class()


# Volumes on which float32 sums fail, as those of MONAI and torchmetrics do


def error_of_second_class(p: torch.Tensor, hit: torch.Tensor) -> float:
    """The error of the probability `p` of class 1, where `hit` says whether the class is true."""
    y_pred = torch.stack([1 - p, p]).unsqueeze(0)
    bins = calibration_bins(y_pred, hit[None, None], region="all", classwise=True)
    return bins.per_class()[1].expected_error().item()


def error_in_monai(p: torch.Tensor, hit: torch.Tensor) -> float:
    return CalibrationErrorMetric(num_bins=15)(p[None, None], hit[None, None].float()).item()


def error_in_torchmetrics(p: torch.Tensor, hit: torch.Tensor) -> float:
    classification = pytest.importorskip("torchmetrics.functional.classification")
    return classification.binary_calibration_error(p, hit.long(), n_bins=15).item()


def calibrated_predictor(voxels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits from N(3, 2), outcomes drawn with that probability: the error is near 0."""
    generator = torch.Generator().manual_seed(0)
    p = (3 + 2 * torch.randn(voxels, generator=generator)).sigmoid()
    return p, torch.rand(p.shape, generator=generator) < p


def one_bin(voxels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """0.9 sure, right in 0.975."""
    return torch.full((voxels,), 0.9), torch.arange(voxels) < 0.975 * voxels


@pytest.mark.parametrize("others", [error_in_monai, error_in_torchmetrics])
@pytest.mark.parametrize(
    ("predictor", "voxels"),
    [
        (calibrated_predictor, 10**6),
        pytest.param(calibrated_predictor, 240 * 240 * 155, marks=pytest.mark.slow),
        pytest.param(one_bin, 40 * 10**6, marks=pytest.mark.slow),
    ],
)
def test_error_of_many_voxels_is_exact_and_others_are_those_of_the_page(
    predictor: Callable, voxels: int, others: Callable
) -> None:
    p, hit = predictor(voxels)
    index = by_definition.bin_index(p.double().numpy())
    residual = (p.double() - hit.double()).numpy()
    expected = np.abs(np.bincount(index, residual)).sum() / voxels
    assert error_of_second_class(p, hit) == pytest.approx(expected, abs=1e-9)
    rows = (ROOT / "docs" / "calibration.md").read_text().splitlines()
    (row,) = (row for row in rows if f" {voxels:,} voxels" in row)
    _, _, true, in_monai, in_torchmetrics, here, _ = row.split("|")
    assert true == here == f" {expected:.6f} "
    shown = in_monai if others is error_in_monai else in_torchmetrics
    assert float(shown) == pytest.approx(others(p, hit), abs=1e-4)


class LargestTensor(TorchDispatchMode):
    """Records the size in bytes of the largest tensor that is created, views excluded."""

    def __init__(self, *inputs: torch.Tensor) -> None:
        super().__init__()
        self.given = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if (
                isinstance(value, torch.Tensor)
                and value.untyped_storage().data_ptr() not in self.given
            ):
                self.bytes = max(self.bytes, value.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize(("classes", "size"), [(4, 44), (105, 16)])
def test_memory_does_not_grow_with_the_volume_or_the_regions(classes: int, size: int) -> None:
    y_pred = torch.full((1, classes, size, size, size), 1 / classes)
    y = torch.ones(1, 1, size, size, size, dtype=torch.uint8)
    kinds = ["top_label", "classwise", "if_true", "nll", "brier"]
    regions = map(Region.parse, ("all", "predicted", "foreground", 1, [1, 2, 3]))
    with LargestTensor(y_pred, y) as largest:
        measure_regions(y_pred, y, dict.fromkeys(regions, kinds))
    assert largest.bytes <= 8 * voxels.CPU_CHUNK  # a chunk of float64


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint16, torch.uint32, torch.uint64])
def test_more_classes_than_a_byte_holds(dtype: torch.dtype) -> None:
    y_pred, y = random_case(0, (1, 300, 500))
    p, label = y_pred[0].double().numpy(), y[0, 0].numpy()
    expected = by_definition.Case(p, label >= 0).measures(label, label >= 0)
    for measure, classwise in (("ece", False), ("cece", True)):
        bins = calibration_bins(y_pred, y.to(dtype), region="all", classwise=classwise)
        assert bins.expected_error().item() == pytest.approx(expected[measure])
