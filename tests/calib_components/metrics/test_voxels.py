"""Selecting and checking voxels, as seen through the functions that read them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from calib_components.errors import InputError
from calib_components.metrics import (
    BrierMetric,
    CalibrationMetric,
    ECEMetric,
    NLLMetric,
    Region,
    calibration_bins,
    voxels,
)
from calib_components.metrics.voxels import check_tensors, read_voxels


def spoil(tensor: torch.Tensor, value: float, count: int) -> torch.Tensor:
    spoiled = tensor.clone(memory_format=torch.contiguous_format)
    spoiled.view(-1)[:count] = value
    return spoiled


GENERATOR = torch.Generator().manual_seed(10)
P = torch.randn(2, 4, 5, 6, generator=GENERATOR).mul(2).softmax(1)
Y = torch.randint(4, (2, 1, 5, 6), generator=GENERATOR)
ONE_HOT = F.one_hot(Y[:, 0], 4).movedim(-1, 1)


@pytest.mark.parametrize(
    ("y_pred", "y", "message"),
    [
        (P[:, :1], Y, r"y must hold 0 or 1 in each channel, .* in \d+ of 60"),
        (P[:, :1], ONE_HOT, r"y must have shape \(2, 1, 5, 6\) \(0 or 1 in each channel\)"),
        (P[:, :, 0, 0], Y[:, :, 0, 0], r"y_pred must have shape \(B, N, \*S\)"),
        (P[:, :, :0], Y[:, :, :0], "at least one voxel"),
        (Y, P, "floating-point type"),
        (
            P,
            Y[:, 0],
            r"y must have shape \(2, 1, 5, 6\) .* to match y_pred, \(B, N, \*S\), got \(2, 5, 6\)",
        ),
        (P, Y[..., :5], r"got \(2, 1, 5, 5\)"),
        (spoil(P, torch.nan, 3), Y, "y_pred has 3 of 240 values that are NaN or outside"),
        (spoil(P, -0.1, 4), Y, r"4 of 240 values .* outside \[0, 1\]. Apply softmax"),
        (P * (torch.arange(6) > 1), Y, "does not sum to 1 .* in 20 of 60 voxels.*background to 1"),
        (P / 2, Y, "sum to 1 .* in 60 of 60 voxels. Apply softmax .* sigmoid=True"),
        (P, spoil(Y, 4, 7), "y must hold class indices from 0 to 3 .* in 7 of 60"),
        (P, spoil(Y, -1, 2), "in 2 of 60"),
        (P, spoil(Y.float(), 1.5, 6), "in 6 of 60"),
        (P, torch.ones_like(ONE_HOT), "in 60 of 60"),
        (P, ONE_HOT.float() * 0.8, "in 60 of 60"),
    ],
)
def test_one_error_reports_the_number_of_invalid_values(
    y_pred: torch.Tensor, y: torch.Tensor, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        calibration_bins(y_pred, y)


@pytest.mark.parametrize(
    ("y_pred", "y", "message"),
    [
        (P, Y, r"y must have shape \(2, 4, 5, 6\) \(0 or 1"),
        (P.log(), ONE_HOT, "of 240 values .* outside .* Apply sigmoid"),
        (spoil(P, torch.nan, 1), ONE_HOT, "has 1 of 240"),
        (
            P**2,
            spoil(ONE_HOT, 254, 1),
            r"0 or 1 in each channel \(or ignore_index=255\), .* in 1 of",
        ),
    ],
)
def test_errors_of_sigmoids(y_pred: torch.Tensor, y: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        calibration_bins(y_pred, y, sigmoid=True, ignore_index=255)


def test_errors_count_the_values_of_all_chunks_and_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voxels, "CPU_CHUNK", 8)
    spoiled = P.clone()
    spoiled[:, 0, 0, ::2] = torch.nan
    with pytest.raises(InputError, match="6 of 240"):
        calibration_bins(spoiled, Y)


def test_voxels_outside_of_the_region_are_checked_as_well() -> None:
    with pytest.raises(InputError, match="has 1 of 240"):
        calibration_bins(spoil(P, torch.nan, 1), torch.zeros_like(Y), region="foreground")


def test_ignored_voxels_are_not_checked_and_others_are() -> None:
    y, broken = Y.clone(), P.clone()
    y[..., 0], broken[..., 0] = -1, torch.nan
    expected = calibration_bins(P[..., 1:], Y[..., 1:]).to_dict()
    assert calibration_bins(broken, y, ignore_index=-1).to_dict() == expected
    with pytest.raises(
        InputError, match=r"from 0 to 3 or one-hot \(or ignore_index=255\).*in 2 of 60"
    ):
        calibration_bins(P, spoil(spoil(Y, 255, 5), 254, 2), ignore_index=255)
    with pytest.raises(InputError, match="ignore_index=-1"):  # which a byte does not hold
        calibration_bins(P, spoil(Y.byte(), 255, 1), ignore_index=-1)


def test_a_one_hot_prediction_warns_once() -> None:
    with pytest.warns(UserWarning, match="y_pred holds only 0 and 1"):
        ECEMetric()(ONE_HOT.float(), Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ECEMetric()(ONE_HOT.float(), Y)
        one_soft_voxel = ONE_HOT.float()
        one_soft_voxel[-1, :, -1, -1] = 0.25
        voxels.warn_once.cache_clear()
        for y_pred in (P, one_soft_voxel):
            ECEMetric()(y_pred, Y)
        ECEMetric(ignore_index=255)(ONE_HOT.float(), torch.full_like(Y, 255))  # no voxel at all


@pytest.mark.parametrize("region", ["all", "predicted", "foreground", "near", 1])
def test_logits_are_read_with_their_region(region: object) -> None:
    logits, chosen = 3 * P - Y, Region.parse(region)
    found = map(chosen.select, read_voxels(*check_tensors(logits, Y, name="logits"), logits=True))
    p = logits.double().softmax(1)
    expected = map(chosen.select, read_voxels(*check_tensors(p, Y)))
    for a, b in zip(found, expected, strict=True):
        assert a.case == b.case
        torch.testing.assert_close(a.values.softmax(0), b.p)
        assert torch.equal(a.label, b.label)


def test_logits_of_one_channel_and_invalid_ones() -> None:
    logits, y = torch.randn(1, 1, 6, 5), torch.ones(1, 1, 6, 5)
    (one,) = read_voxels(*check_tensors(logits, y), logits=True)
    assert torch.equal(one.values, torch.stack([torch.zeros(30), logits.flatten()]).double())
    logits[0, 0, :3, 0] = torch.inf
    with pytest.raises(InputError, match="logits must be finite, got 3 of 30"):
        list(read_voxels(logits, y, logits=True))


SIGMOIDS = torch.rand(2, 3, 5, 6, generator=GENERATOR)
# Nested, as those of BraTS
REGIONS = torch.stack([Y[:, 0] > 0, Y[:, 0] > 1, Y[:, 0] > 2], 1).float() * 0.9 + 0.05


LIST_ITEM = "tems of lists have no batch axis"


@pytest.mark.parametrize(
    ("y_pred", "y", "sigmoid", "message"),
    [
        ([*P[:, None]], [*ONE_HOT[:, None]], False, LIST_ITEM),
        ([*P[:, None]], [*ONE_HOT[:, None]], True, LIST_ITEM),
        ([torch.rand(1, 3, 4, 5, 6)], [torch.ones(1, 3, 4, 5, 6)], True, LIST_ITEM),
        (P, ONE_HOT, True, "sums to 1 over its channels, as a softmax does. Set sigmoid=False"),
        (P.half(), ONE_HOT, True, "sums to 1 over its channels"),
        (P[0], ONE_HOT[0], False, r"no batch axis.* y_pred\[None\]"),
        (P[0], ONE_HOT[0], True, "no batch axis"),
        (P[0, :, None], ONE_HOT[0, :, None], True, "no batch axis"),
    ],
)
def test_classes_along_another_axis_are_refused(
    y_pred: torch.Tensor, y: torch.Tensor, sigmoid: bool, message: str
) -> None:
    for metric in (ECEMetric, NLLMetric, BrierMetric, CalibrationMetric):
        with pytest.raises(InputError, match=message):
            metric(sigmoid=sigmoid)(y_pred, y)


@pytest.mark.parametrize(
    "y_pred",
    [
        SIGMOIDS,
        REGIONS,
        SIGMOIDS[:, :1],
        torch.full((2, 2, 8, 8), 0.5),
        torch.stack([REGIONS[0], 1 - REGIONS[0]]),
    ],
)
def test_sigmoids_of_structures_pass(y_pred: torch.Tensor) -> None:
    y = (y_pred > 0.3).int()
    y[-1] = y[0]
    for given in ((y_pred, y), ([*y_pred], [*y])):
        assert ECEMetric(sigmoid=True, region="all")(*given) is not None


@pytest.mark.parametrize("metric", [NLLMetric, BrierMetric, ECEMetric])
def test_sums_that_are_not_1_are_divided_by(metric: Any) -> None:
    """Those of float32, off by rounding, are left as they are."""
    exact, found = P.double() / P.double().sum(1, keepdim=True), []
    for y_pred in (P * torch.linspace(0.992, 1.008, 6), exact, P):
        measure = metric(region="all")
        measure(y_pred, Y)
        found.append(measure.aggregate().item())
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    if metric is NLLMetric:
        assert found[2] == pytest.approx(-P.double().gather(1, Y).log().mean().item(), rel=1e-12)
