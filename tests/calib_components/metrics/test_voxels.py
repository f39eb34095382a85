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
    ECEMetric,
    NLLMetric,
    calibration_bins,
    voxels,
)


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
        (P[:, :1], Y, r"y must hold 0 or 1 in each channel, .* in \d+ of 30"),
        (P[:, :1], ONE_HOT, r"y must have shape \(2, 1, 5, 6\) \(0 or 1 in each channel\)"),
        (P[:, :, 0, 0], Y[:, :, 0, 0], r"y_pred must have shape \(B, N, \*S\)"),
        (P[:, :, :0], Y[:, :, :0], "at least one voxel"),
        (Y, P, "floating-point type"),
        (
            P,
            Y[:, 0, 0],
            r"y must have shape \(2, 1, 5, 6\) .* to match y_pred, \(B, N, \*S\), got \(2, 6\)",
        ),
        (P, Y[..., :5], r"got \(2, 1, 5, 5\)"),
        (spoil(P, torch.nan, 3), Y, "y_pred must hold probabilities, .* values from nan"),
        (spoil(P, -0.1, 4), Y, r"values from -0\.1 to .* Apply softmax"),
        (P * (torch.arange(6) > 1), Y, "sum to 1 .* sums are from 0 to 1.*background to 1"),
        (P / 2, Y, "sums are from 0.5 to 0.5. Apply softmax .* sigmoid=True"),
        (P, spoil(Y, 4, 7), "y must hold class indices from 0 to 3 .* in 7 of 30"),
        (P, spoil(Y, -1, 2), "in 2 of 30"),
        (P, spoil(Y.float(), 1.5, 6), "in 6 of 30"),
        (P, torch.ones_like(ONE_HOT), "in 30 of 30"),
        (P, ONE_HOT.float() * 0.8, "y must hold probabilities .* sums are from 0.8"),
    ],
)
def test_invalid_values_are_refused(y_pred: torch.Tensor, y: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        calibration_bins(y_pred, y)


@pytest.mark.parametrize(
    ("y_pred", "y", "message"),
    [
        (P, Y, r"y must have shape \(2, 4, 5, 6\) \(0 or 1"),
        (P.log(), ONE_HOT, "from 0 to 1, got values from -.* Apply sigmoid"),
        (spoil(P, torch.nan, 1), ONE_HOT, "from 0 to 1, got values from nan"),
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


def test_voxels_outside_of_the_region_are_checked_as_well() -> None:
    with pytest.raises(InputError, match="values from nan"):
        calibration_bins(spoil(P, torch.nan, 1), torch.zeros_like(Y), region="foreground")


def test_ignored_voxels_are_not_checked_and_others_are() -> None:
    y, broken = Y.clone(), P.clone()
    y[..., 0], broken[..., 0] = -1, torch.nan
    expected = calibration_bins(P[..., 1:], Y[..., 1:]).to_dict()
    assert calibration_bins(broken, y, ignore_index=-1).to_dict() == expected
    with pytest.raises(
        InputError, match=r"from 0 to 3 or one-hot \(or ignore_index=255\).*in 2 of 27"
    ):
        calibration_bins(P, spoil(spoil(Y, 255, 5), 254, 2), ignore_index=255)
    with pytest.raises(InputError, match="ignore_index=-1"):  # which a byte does not hold
        calibration_bins(P, spoil(Y.byte(), 255, 1), ignore_index=-1)


def test_a_one_hot_prediction_warns_once() -> None:
    with pytest.warns(UserWarning, match="y_pred holds only 0 and 1"):
        ECEMetric(region="foreground")(ONE_HOT.float(), Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ECEMetric(region="foreground")(ONE_HOT.float(), Y)
        one_soft_voxel = ONE_HOT.float()
        one_soft_voxel[-1, :, -1, -1] = 0.25
        voxels.warn_once.cache_clear()
        for y_pred in (P, one_soft_voxel):
            ECEMetric(region="foreground")(y_pred, Y)
        ECEMetric(region="all", ignore_index=255)(
            ONE_HOT.float(), torch.full_like(Y, 255)
        )  # no voxel at all


def test_items_of_lists_have_no_batch_axis() -> None:
    with pytest.raises(InputError, match="items of lists have no batch axis"):
        ECEMetric(region="all", sigmoid=True)(
            [torch.rand(1, 3, 4, 5, 6)], [torch.ones(1, 3, 4, 5, 6)]
        )


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
