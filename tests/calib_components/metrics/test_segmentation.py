from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt

from calib_components.errors import InputError, warn_once
from calib_components.metrics import (
    DSCMetric,
    HD95Metric,
    dice,
    hausdorff_distance_95,
    structure_masks,
)
from tests.calib_components.metrics.test_bins import golden


@pytest.mark.parametrize("name", ["metrics_k2", "metrics_k4"])
def test_dice_and_hd95_equal_medpy(name: str) -> None:
    values, probabilities, labels = golden(name)
    classes = probabilities.shape[1]
    predicted = torch.nn.functional.one_hot(probabilities.argmax(1), classes).movedim(-1, 1)
    for prefix, metric in (
        ("dsc", DSCMetric()),
        ("hd95", HD95Metric()),
        ("hd95_spacing_3_1.5_1.5", HD95Metric(spacing=(3, 1.5, 1.5))),
    ):
        metric(predicted, labels)
        expected = [values[f"{prefix}/class{k}"].item() for k in range(1, classes)]
        np.testing.assert_allclose(metric.aggregate("none")[0], expected, atol=1e-4)


def mask(*voxels: int) -> torch.Tensor:
    """A structure in a row of ten voxels, `(1, 1, 1, 10)`."""
    row = torch.zeros(1, 1, 1, 10, dtype=torch.bool)
    row[..., list(voxels)] = True
    return row


def test_values_by_hand() -> None:
    # 2 x 1 shared voxel / (2 + 3)
    assert dice(mask(0, 1), mask(1, 2, 3)).item() == pytest.approx(0.4)
    # From 0 and 9 to 0: 0 and 9; from 0 to them: 0. The 95th percentile of 0, 0, 9 lies at 1.9 of 2
    # steps: 0.9 x 9. The larger of the directed percentiles would be 0.95 x 9.
    assert hausdorff_distance_95(mask(0, 9), mask(0)).item() == pytest.approx(8.1)
    assert hausdorff_distance_95(mask(0, 9), mask(0), spacing=(1, 2)).item() == pytest.approx(16.2)


def by_distance_transform(a: np.ndarray, b: np.ndarray, spacing: Sequence[float] | None) -> float:
    surfaces = [padded & ~binary_erosion(padded) for padded in (np.pad(a, 1), np.pad(b, 1))]
    to_a, to_b = (distance_transform_edt(~surface, sampling=spacing) for surface in surfaces)
    return float(np.percentile(np.concatenate([to_b[surfaces[0]], to_a[surfaces[1]]]), 95))


@pytest.mark.parametrize("spacing", [None, (1.5, 0.7, 10.0), (2.0, 3.0)])
# Few voxels far from each other; many, up to the border
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_hd95_equals_that_by_distance_transforms(
    share: float, spacing: tuple[float, ...] | None
) -> None:
    shape = (12, 14) if spacing is not None and len(spacing) == 2 else (9, 14, 7)
    masks = np.random.default_rng(0).random((2, 3, *shape)) < share
    found = hausdorff_distance_95(*torch.from_numpy(masks)[:, None], spacing)[0]
    expected = [by_distance_transform(a, b, spacing) for a, b in zip(*masks, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_absent_structures() -> None:
    predicted = torch.cat([mask(1), mask(), mask(1), mask()], 1)
    true = torch.cat([mask(1), mask(1), mask(), mask()], 1)
    for metric, expected, mean in (
        (DSCMetric(include_background=True), [[1, 0, 0, math.nan]], 1 / 3),
        (HD95Metric(include_background=True), [[0] + [math.nan] * 3], 0),
    ):
        metric(predicted, true)
        np.testing.assert_array_equal(metric.aggregate("none"), expected)
        assert metric.aggregate().item() == pytest.approx(mean)


def test_the_mean_is_first_over_the_structures_of_a_case() -> None:
    metric = DSCMetric(include_background=True)
    metric(torch.cat([mask(1), mask(1)], 1), torch.cat([mask(1), mask(1)], 1))
    metric(torch.cat([mask(1), mask()], 1), torch.cat([mask(2), mask()], 1))  # of one structure
    assert metric.aggregate().item() == 0.5
    assert metric.aggregate("mean_batch").tolist() == [0.5, 1]


def test_a_structure_that_is_left_out_as_background_is_warned_of() -> None:
    regions = structure_masks(torch.tensor([[[0, 1, 2, 3]]]), [[3], [1, 3], [1, 2, 3]])[None]
    for metric in (DSCMetric, HD95Metric):
        with pytest.warns(UserWarning, match="y has voxels of channel 0 in other channels"):
            metric()(regions, regions)
        metric(include_background=True)(regions, regions)  # says nothing
        warn_once.cache_clear()  # they say the same


# No channel of the background
MASKS = structure_masks(torch.tensor([[[0, 1, 2, 2]]]), [[1], [2], [1, 2]])[None]


NOTHING, NO_CLASS = torch.zeros(1, 2, 4, 4), torch.full((1, 2, 4, 4), torch.nan)
NOT_MASKS = "masks of 0 and 1, .* in 32 of 32 elements"


@pytest.mark.parametrize(
    ("y_pred", "y", "message"),
    [
        (NOTHING + 0.5, NOTHING, NOT_MASKS),
        (NO_CLASS, NOTHING, NOT_MASKS),
        (NOTHING, NOTHING[..., :3], r"y must have shape \(1, 1, 4, 4\) .* got \(1, 2, 4, 3\)"),
        (NOTHING, torch.full((1, 1, 4, 4), 2), "class indices from 0 to 1, .* in 16 of 16"),
        (MASKS, torch.tensor([[[[0, 1, 2, 2]]]]), "y_pred must be one-hot .* 4 of 4 voxels"),
        (torch.zeros(4), torch.zeros(4), r"shape \(B, N, \*S\)"),
        (torch.zeros(1, 1, 4), torch.zeros(1, 1, 4), "one channel"),
    ],
)
def test_wrong_input(y_pred: torch.Tensor, y: torch.Tensor, message: str) -> None:
    for metric in (DSCMetric(), HD95Metric()):
        with pytest.raises(InputError, match=message):
            metric(y_pred, y)


def test_cases_of_other_spacings_are_given_theirs() -> None:
    """As with MONAI's metrics."""
    y_pred, y = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    y_pred[..., 0, 0], y[..., 0, 3] = 1, 1
    metric = HD95Metric(include_background=True)
    metric(y_pred, y)
    metric(y_pred, y, spacing=(1.5, 2.0))
    assert metric.aggregate("none").flatten().tolist() == [3, 6]
    with pytest.raises(TypeError, match="unexpected keyword argument 'spacing'"):
        DSCMetric(include_background=True)(y_pred, y, spacing=(1, 1))


@pytest.mark.parametrize("spacing", [(1, 2, 3), 1.5, (1, 0), (1, math.nan), (-1, 1)])
def test_spacing_has_one_positive_value_per_axis(spacing: object) -> None:
    with pytest.raises(InputError, match="spacing"):
        HD95Metric(include_background=True, spacing=spacing)(mask(1), mask(1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "label", [torch.zeros(2, 1, 4), torch.tensor([[0, 0.5, 1]]), torch.tensor([[0, -1, 1]])]
)
def test_structures_of_what_is_no_label_map(label: torch.Tensor) -> None:
    """Such as a batch, or a label that was resampled linearly."""
    with pytest.raises(InputError, match="label"):
        structure_masks(label, [[1]])


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint16, torch.uint32, torch.uint64])
def test_more_classes_than_a_byte_holds(dtype: torch.dtype) -> None:
    labels = torch.arange(300).view(1, 1, -1).to(dtype)
    assert structure_masks(labels[0], [[299]]).nonzero().tolist() == [[0, 299]]
    assert dice(torch.eye(300)[None], labels).eq(1).all()
    assert not structure_masks(torch.tensor([[44]], dtype=torch.uint8), [[300]]).any()  # is 44
