"""Selecting and checking voxels, as seen through the functions that read them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from calib_components.metrics import (
    ECEMetric,
    adaptive_calibration_error,
    brier_score,
    calibration_bins,
    negative_log_likelihood,
    voxels,
)


def spoil(tensor: torch.Tensor, value: float, count: int) -> torch.Tensor:
    spoiled = tensor.clone()
    spoiled.view(-1)[:count] = value
    return spoiled


GENERATOR = torch.Generator().manual_seed(10)
P = torch.randn(2, 4, 5, 6, generator=GENERATOR).mul(2).softmax(1)
Y = torch.randint(4, (2, 1, 5, 6), generator=GENERATOR)
ONE_HOT = F.one_hot(Y[:, 0], 4).movedim(-1, 1)


@pytest.mark.parametrize(
    ("y_pred", "y", "message"),
    [
        (P[0], Y, r"^y: expected shape \(4, 1, 6\) .*got \(2, 1, 5, 6\)$"),
        (P[:, :1], Y, r"^y: expected 0 or 1 in each channel, got other values in \d+ of 60 voxels$"),
        (
            P[:, :1],
            ONE_HOT,
            r"^y: expected shape \(2, 1, 5, 6\) \(0 or 1 in each channel\) to match y_pred, got \(2, 4, 5",
        ),
        (P[:, :, 0, 0], Y[:, :, 0, 0], r"^y_pred: expected shape \(B, N, \*S\)"),
        (P, Y[:, 0], r"^y: expected shape \(2, 1, 5, 6\) \(class index\) or \(2, 4, 5, 6\).*got \(2, 5, 6\)"),
        (P, Y[..., :5], r"got \(2, 1, 5, 5\)"),
        (P, ONE_HOT[:, :3], r"got \(2, 3, 5, 6\)"),
        (P, Y[:1], r"got \(1, 1, 5, 6\)"),
        (spoil(P, torch.nan, 3), Y, "^y_pred: expected probabilities, got 3 of 240 values that are NaN or infinite$"),
        (spoil(P, torch.inf, 2), Y, "got 2 of 240 values that are NaN or infinite"),
        (spoil(P, -0.1, 4), Y, r"4 of 240 values outside \[0, 1\]: y_pred looks like logits; apply softmax$"),
        (spoil(P, 1.5, 5), Y, r"5 of 240 values outside \[0, 1\]"),
        (P.log(), Y, r"outside \[0, 1\].*looks like logits; apply softmax"),
        (
            P * (torch.arange(6) > 1),
            Y,
            "another sum in 20 of 60 voxels, 0 in 20, as outside of a crop.*prediction_maps.fill_background$",
        ),
        (P / 2, Y, "sum to 1 over the classes, got another sum in 60 of 60 voxels; apply softmax to the logits"),
        (
            P,
            spoil(Y, 4, 7),
            "^y: expected class indices from 0 to 3 or their one-hot encoding, got other values in 7 of 60 voxels$",
        ),
        (P, spoil(Y, -1, 2), "2 of 60 voxels"),
        (P, spoil(Y.float(), 1.5, 6), "6 of 60 voxels"),
        (P, spoil(Y.float(), torch.nan, 6), "6 of 60 voxels"),
        (P, torch.zeros_like(ONE_HOT), "60 of 60 voxels"),
        (P, ONE_HOT * 2, "60 of 60 voxels"),
        (P, ONE_HOT.float() * 0.8 + 0.05, "60 of 60 voxels"),
    ],
)
def test_one_error_reports_the_number_of_invalid_values(y_pred: torch.Tensor, y: torch.Tensor, message: str) -> None:
    for measure in (calibration_bins, adaptive_calibration_error, negative_log_likelihood, brier_score):
        with pytest.raises(ValueError, match=message):
            measure(y_pred, y)


def test_a_single_voxel_is_checked() -> None:
    for y_pred, y in ((P[:1, :, :1, :1] / 2, Y[:1, :, :1, :1]), (P[:1, :, :1, :1], Y[:1, :, :1, :1] + 4)):
        with pytest.raises(ValueError, match="in 1 of 1 voxels"):
            calibration_bins(y_pred, y)


def test_errors_count_the_values_of_all_chunks_and_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voxels, "CPU_CHUNK", 8)
    spoiled = P.clone()
    spoiled[:, 0, 0, ::2] = torch.nan
    with pytest.raises(ValueError, match="6 of 240 values that are NaN"):
        calibration_bins(spoiled, Y)


def test_background_voxels_are_checked_as_well() -> None:
    with pytest.raises(ValueError, match=r"^y_pred: expected probabilities, got 1 of 240 values that are NaN"):
        calibration_bins(spoil(P, torch.nan, 1), torch.zeros_like(Y), foreground_only=True)


def test_labels_other_than_the_ignored_one_are_checked() -> None:
    with pytest.raises(ValueError, match=r"from 0 to 3 \(or ignore_index=255\).*in 2 of 60 voxels"):
        calibration_bins(P, spoil(spoil(Y, 255, 5), 254, 2), ignore_index=255)


def test_wrong_types_and_settings() -> None:
    with pytest.raises(TypeError, match=r"^y_pred: expected a torch\.Tensor, got ndarray$"):
        calibration_bins(P.numpy(), Y)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^y: expected a torch\.Tensor, got NoneType$"):
        calibration_bins(P, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^y_pred: expected probabilities of a floating-point type, got torch\.int64$"):
        calibration_bins(ONE_HOT, Y)
    with pytest.raises(ValueError, match=r"^num_bins: expected a whole number from 1 to 10000, got 0$"):
        calibration_bins(P, Y, num_bins=0)
    with pytest.raises(ValueError, match=r"^num_bins: expected a whole number from 1 to 10000, got 0$"):
        ECEMetric(num_bins=0)


def test_ignored_voxels_are_not_checked() -> None:
    y_pred, y = P, Y.clone()
    y[..., 0] = -1
    broken = y_pred.clone()
    broken[..., 0] = torch.nan
    expected = calibration_bins(y_pred[..., 1:], y[..., 1:]).to_dict()
    assert calibration_bins(y_pred, y, ignore_index=-1).to_dict() == expected
    assert calibration_bins(broken, y, ignore_index=-1).to_dict() == expected
