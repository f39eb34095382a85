"""Bad arguments of losses and metrics: each call raises one error whose line names the argument, or warns once."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from calib_components import losses, metrics
from calib_components.losses import (
    EntropyPenaltyLoss,
    FocalLoss,
    L1ACEDiceCELoss,
    L1ACELoss,
    LabelSmoothingLoss,
    MbLSLoss,
    NACLLoss,
    SVLSLoss,
    neighbor_prior,
)
from calib_components.metrics import (
    BrierMetric,
    CalibrationBins,
    CalibrationMetric,
    CECEMetric,
    DSCMetric,
    ECEMetric,
    ExpectedDSCMetric,
    HD95Metric,
    LogitMagnitudeMetric,
    NLLMetric,
    Region,
    RiskCoverageMetric,
    SmoothECEMetric,
    ThresholdCounts,
    ThresholdMetric,
    VolumeMetric,
    adaptive_calibration_error,
    brier_score,
    calibration_bins,
    consistency_bands,
    dice,
    expected_dsc,
    hausdorff_distance_95,
    negative_log_likelihood,
    resampled_errors,
    risk_coverage,
    structure_masks,
    structure_volumes,
    threshold_counts,
)


class Row(NamedTuple):
    """A call, and the start of the message of the error that it raises."""

    id: str
    call: Callable[[], Any]
    error: type[Exception]
    message: str


GENERATOR = torch.Generator().manual_seed(0)
X = 3 * torch.randn(2, 4, 6, 5, generator=GENERATOR)  # logits
Y = torch.randint(4, (2, 1, 6, 5), generator=GENERATOR)
P = X.softmax(1)
ONE_HOT = F.one_hot(Y[:, 0], 4).movedim(-1, 1)


def spoiled(tensor: torch.Tensor, value: float) -> torch.Tensor:
    """A copy whose first element is another."""
    copy = tensor.clone(memory_format=torch.contiguous_format)
    copy.view(-1)[0] = value
    return copy


VALUE, TYPE = ValueError, TypeError
OPTIONS = "expected an option of"
LOSSES = [
    # Logits
    Row("one channel", lambda: NACLLoss()(X[:, :1], Y), VALUE, "input: expected logits of shape (B, N, H, W) or (B, N, H, W, D) with N >= 2 classes, got (2, 1, 6, 5); for the one channel of a sigmoid, x, give torch.cat([torch.zeros_like(x), x], 1)"),
    Row("one channel in 3D", lambda: FocalLoss()(torch.zeros(1, 1, 2, 2, 2), Y), VALUE, "input: expected logits of shape (B, N, H, W) or (B, N, H, W, D) with N >= 2 classes, got (1, 1, 2, 2, 2); for the one channel"),
    Row("no channel", lambda: NACLLoss()(X[:, 0], Y), VALUE, "input: expected logits of shape (B, N, H, W) or (B, N, H, W, D) with N >= 2 classes, got (2, 6, 5)"),
    Row("1D", lambda: NACLLoss()(X[..., 0], Y[..., 0]), VALUE, "input: expected logits of shape"),
    Row("4D", lambda: NACLLoss()(X[..., None, None], Y[..., None, None]), VALUE, "input: expected logits of shape"),
    Row("no case", lambda: NACLLoss()(X[:0], Y[:0]), VALUE, "input: expected at least one voxel, got shape (0, 4, 6, 5)"),
    Row("no row", lambda: SVLSLoss()(X[:, :, :0], Y[:, :, :0]), VALUE, "input: expected at least one voxel, got shape (2, 4, 0, 5)"),
    Row("whole numbers", lambda: MbLSLoss()(X.long(), Y), TYPE, "input: expected floating-point logits, got torch.int64; the order is loss(input, target)"),
    Row("swapped", lambda: MbLSLoss()(Y, X), TYPE, "input: expected floating-point logits, got torch.int64; the order is loss(input, target)"),
    Row("complex", lambda: MbLSLoss()(X.cfloat(), Y), TYPE, "input: expected floating-point logits, got torch.complex64"),
    Row("bool", lambda: MbLSLoss()(X > 0, Y), TYPE, "input: expected floating-point logits, got torch.bool"),
    Row("numpy", lambda: MbLSLoss()(X.numpy(), Y), TYPE, "input: expected a torch.Tensor, got ndarray"),
    Row("None", lambda: MbLSLoss()(None, Y), TYPE, "input: expected a torch.Tensor, got NoneType"),
    Row("list of outputs", lambda: MbLSLoss()([X, X], Y), TYPE, "input: expected a torch.Tensor, got list"),
    Row("NaN", lambda: LabelSmoothingLoss()(spoiled(X, math.nan), Y), VALUE, "input: expected finite logits from -1e+15 to 1e+15, got values from nan to nan"),
    Row("infinite", lambda: LabelSmoothingLoss()(spoiled(X, math.inf), Y), VALUE, "input: expected finite logits from -1e+15 to 1e+15, got values from -"),
    Row("minus infinite", lambda: FocalLoss()(spoiled(X, -math.inf), Y), VALUE, "input: expected finite logits from -1e+15 to 1e+15, got values from -inf to "),
    Row("1e38", lambda: NACLLoss()(torch.full_like(X, 1e38), Y), VALUE, "input: expected finite logits from -1e+15 to 1e+15, got values from 9.99"),
    Row("-1e38", lambda: EntropyPenaltyLoss()(spoiled(X, -1e38), Y), VALUE, "input: expected finite logits from -1e+15 to 1e+15, got values from -9.99"),
    Row("float16 overflow", lambda: NACLLoss()(spoiled(X.half(), 70000.0), Y), VALUE, "input: expected finite logits from -1e+15 to 1e+15, got values from -"),
    Row("float64 of 1e200", lambda: NACLLoss()(spoiled(X.double(), 1e200), Y), VALUE, "input: expected finite logits"),
    # Targets
    Row("other size", lambda: FocalLoss()(X, Y[..., :4]), VALUE, "target: expected shape (2, 1, 6, 5) or (2, 6, 5) (class indices) or (2, 4, 6, 5) (probabilities), got (2, 1, 6, 4)"),
    Row("other number of cases", lambda: FocalLoss()(X, Y[:1]), VALUE, "target: expected shape (2, 1, 6, 5) or (2, 6, 5)"),
    Row("transposed", lambda: FocalLoss()(X, Y.mT), VALUE, "target: expected shape (2, 1, 6, 5) or (2, 6, 5)"),
    Row("channel last", lambda: FocalLoss()(X.movedim(1, -1), Y), VALUE, "target: expected shape (2, 1, 5, 4) or (2, 5, 4) (class indices) or (2, 6, 5, 4) (probabilities), got (2, 1, 6, 5); the classes are the second dimension of the input: input.movedim(-1, 1)"),
    Row("channel last, no channel", lambda: FocalLoss()(X.movedim(1, -1), Y[:, 0]), VALUE, "target: expected shape (2, 1, 5, 4) or (2, 5, 4) (class indices) or (2, 6, 5, 4) (probabilities), got (2, 6, 5); the classes are"),
    Row("one-hot of other classes", lambda: NACLLoss()(X, ONE_HOT[:, :3]), VALUE, "target: expected shape (2, 1, 6, 5) or"),
    Row("class N", lambda: NACLLoss()(X, spoiled(Y, 4)), VALUE, "target: expected class indices from 0 to 3, got values from 0 to 4"),
    Row("class 255 as uint8", lambda: NACLLoss()(X, spoiled(Y.byte(), 255)), VALUE, "target: expected class indices from 0 to 3, got values from 0 to 255"),
    Row("class -1", lambda: SVLSLoss()(X, spoiled(Y, -1)), VALUE, "target: expected class indices from 0 to 3, got values from -1 to 3"),
    Row("not ignore_index", lambda: SVLSLoss(ignore_index=254)(X, spoiled(Y, 255)), VALUE, "target: expected class indices from 0 to 3 or ignore_index 254, got values from 0 to 255"),
    Row("fractions", lambda: SVLSLoss()(X, Y + 0.5), VALUE, "target: expected whole numbers as class indices, got values from 0.5 to 3.5"),
    Row("NaN target", lambda: SVLSLoss()(X, spoiled(Y.float(), math.nan)), VALUE, "target: expected whole numbers as class indices, got values from nan to nan"),
    Row("infinite target", lambda: SVLSLoss()(X, spoiled(Y.float(), math.inf)), VALUE, "target: expected whole numbers as class indices, got values from 0.0 to inf"),
    Row("complex target", lambda: SVLSLoss()(X, Y.cfloat()), TYPE, "target: expected class indices or probabilities, got torch.complex64"),
    Row("numpy target", lambda: SVLSLoss()(X, Y.numpy()), TYPE, "target: expected a torch.Tensor, got ndarray"),
    Row("logits as target", lambda: NACLLoss()(X, X), VALUE, "target: expected probabilities of at least 0, got values from -"),
    Row("NaN probabilities", lambda: NACLLoss()(X, spoiled(P, math.nan)), VALUE, "target: expected probabilities of at least 0, got values from nan to nan"),
    Row("sigmoid as target", lambda: NACLLoss()(X, X.sigmoid()), VALUE, "target: expected probabilities whose sum over the classes is 1, got values from "),
    Row("empty one-hot", lambda: NACLLoss()(X, torch.zeros_like(ONE_HOT)), VALUE, "target: expected probabilities whose sum over the classes is 1, got values from 0.0 to 0.0"),
    Row("probabilities to focal", lambda: FocalLoss()(X, P), VALUE, "target: expected class indices for the focal loss, got probabilities"),
    Row("probabilities to max", lambda: NACLLoss(prior="max")(X, P), VALUE, "target: expected class indices with the prior 'max', got probabilities"),
    Row("probabilities and ignore_index", lambda: MbLSLoss(ignore_index=255)(X, P), VALUE, "ignore_index: expected None with probabilities as target, got 255"),
    # Options
    Row("penalty", lambda: NACLLoss(penalty="L1"), VALUE, "penalty: expected one of 'l1', 'l2', got 'L1'"),
    Row("penalty None", lambda: NACLLoss(penalty=None), VALUE, "penalty: expected one of 'l1', 'l2', got None"),
    Row("constraint", lambda: NACLLoss(constraint="logit"), VALUE, "constraint: expected one of 'logits', 'softmax', got 'logit'"),
    Row("prior", lambda: NACLLoss(prior="average"), VALUE, "prior: expected one of 'mean', 'gaussian', 'max', 'min', 'median', 'mode', got 'average'"),
    Row("prior list", lambda: NACLLoss(prior=["mean"]), VALUE, "prior: expected one of 'mean', 'gaussian', 'max', 'min', 'median', 'mode', got ['mean']"),
    Row("padding", lambda: NACLLoss(padding="zeros"), VALUE, "padding: expected one of 'replicate', 'background', got 'zeros'"),
    Row("kernel_size even", lambda: NACLLoss(kernel_size=4), VALUE, "kernel_size: expected an odd number of at least 1, got 4"),
    Row("kernel_size 0", lambda: NACLLoss(kernel_size=0), VALUE, "kernel_size: expected an odd number of at least 1, got 0"),
    Row("kernel_size fraction", lambda: NACLLoss(kernel_size=2.5), VALUE, "kernel_size: expected an odd number of at least 1, got 2.5"),
    Row("kernel_size float", lambda: NACLLoss(kernel_size=3.0), VALUE, "kernel_size: expected an odd number of at least 1, got 3.0"),
    Row("kernel_size text", lambda: SVLSLoss(kernel_size="3"), VALUE, "kernel_size: expected an odd number of at least 3, got '3'"),
    Row("kernel_size True", lambda: NACLLoss(kernel_size=True), VALUE, "kernel_size: expected an odd number of at least 1, got True"),
    Row("kernel_size 1 of SVLS", lambda: SVLSLoss(kernel_size=1), VALUE, "kernel_size: expected an odd number of at least 3, got 1"),
    Row("sigma 0", lambda: SVLSLoss(sigma=0), VALUE, "sigma: expected a number of at least 0.1, got 0"),
    Row("sigma NaN", lambda: SVLSLoss(sigma=math.nan), VALUE, "sigma: expected a number of at least 0.1, got nan"),
    Row("sigma infinite", lambda: SVLSLoss(sigma=math.inf), VALUE, "sigma: expected a number of at least 0.1, got inf"),
    Row("sigma text", lambda: SVLSLoss(sigma="2"), VALUE, "sigma: expected a number of at least 0.1, got '2'"),
    Row("gamma", lambda: FocalLoss(gamma=-1), VALUE, "gamma: expected a number of at least 0, got -1"),
    Row("gamma None", lambda: FocalLoss(gamma=None), VALUE, "gamma: expected a number of at least 0, got None"),
    Row("alpha", lambda: LabelSmoothingLoss(alpha=2), VALUE, "alpha: expected a number from 0 to 1, got 2"),
    Row("alpha NaN", lambda: LabelSmoothingLoss(alpha=math.nan), VALUE, "alpha: expected a number from 0 to 1, got nan"),
    Row("alpha True", lambda: LabelSmoothingLoss(alpha=True), VALUE, "alpha: expected a number from 0 to 1, got True"),
    Row("num_bins 0", lambda: L1ACELoss(num_bins=0), VALUE, "num_bins: expected a whole number from 1 to 10000, got 0"),
    Row("num_bins float", lambda: L1ACEDiceCELoss(num_bins=20.0), VALUE, "num_bins: expected a whole number from 1 to 10000, got 20.0"),
    Row("ignore_empty_classes", lambda: L1ACELoss(ignore_empty_classes=1), VALUE, "ignore_empty_classes: expected True or False, got 1"),
    Row("penalty_weight of L1-ACE", lambda: L1ACEDiceCELoss(penalty_weight=-1), VALUE, "penalty_weight: expected a number of at least 0, got -1"),
    Row("ignore_index of L1-ACE", lambda: L1ACELoss(ignore_index=1.5), VALUE, "ignore_index: expected a whole number or None, got 1.5"),
    Row("margin NaN", lambda: MbLSLoss(margin=math.nan), VALUE, "margin: expected a number of at least 0, got nan"),
    Row("margin infinite", lambda: MbLSLoss(margin=math.inf), VALUE, "margin: expected a number of at least 0, got inf"),
    Row("penalty_weight", lambda: NACLLoss(penalty_weight=-0.1), VALUE, "penalty_weight: expected a number of at least 0, got -0.1"),
    Row("penalty_weight text", lambda: EntropyPenaltyLoss(penalty_weight="0.1"), VALUE, "penalty_weight: expected a number of at least 0, got '0.1'"),
    Row("ignore_index fraction", lambda: NACLLoss(ignore_index=1.5), VALUE, "ignore_index: expected a whole number or None, got 1.5"),
    Row("ignore_index True", lambda: FocalLoss(ignore_index=True), VALUE, "ignore_index: expected a whole number or None, got True"),
    Row("ignore_index text", lambda: SVLSLoss(ignore_index="255"), VALUE, "ignore_index: expected a whole number or None, got '255'"),
    Row("ignore_index list", lambda: MbLSLoss(ignore_index=[0]), VALUE, "ignore_index: expected a whole number or None, got [0]"),
    Row("ignore_index beyond int64", lambda: MbLSLoss(ignore_index=2**63), VALUE, "ignore_index: expected a whole number or None, got 9223372036854775808"),
    Row("ignore_index below int64", lambda: MbLSLoss(ignore_index=-(2**63) - 1), VALUE, "ignore_index: expected a whole number or None, got -9223372036854775809"),
    Row("kernel_size negative", lambda: NACLLoss(kernel_size=-3), VALUE, "kernel_size: expected an odd number of at least 1, got -3"),
    Row("penalty_weight tensor", lambda: NACLLoss(penalty_weight=torch.tensor([0.1])), VALUE, "penalty_weight: expected a number of at least 0, got tensor([0.1000])"),
    Row("ignore_index of ECP", lambda: EntropyPenaltyLoss(ignore_index=""), VALUE, "ignore_index: expected a whole number or None, got ''"),
    Row("ignore_index of LS", lambda: LabelSmoothingLoss(ignore_index=0.0), VALUE, "ignore_index: expected a whole number or None, got 0.0"),
    Row("ignore_index of function", lambda: losses.nacl_loss(X, Y, ignore_index=False), VALUE, "ignore_index: expected a whole number or None, got False"),
    Row("option of function", lambda: losses.mbls_loss(X, Y, margin="5"), VALUE, "margin: expected a number of at least 0, got '5'"),
    # Options of MONAI's losses
    Row("reduction", lambda: FocalLoss(reduction="none"), TYPE, "reduction: expected an option of FocalLoss (gamma, ignore_index), got another; the loss is always a mean over what counts"),
    Row("to_onehot_y", lambda: MbLSLoss(to_onehot_y=True), TYPE, f"to_onehot_y: {OPTIONS} MbLSLoss (margin, penalty_weight, ignore_index), got another; class indices are accepted"),
    Row("softmax", lambda: NACLLoss(softmax=True), TYPE, f"softmax: {OPTIONS} NACLLoss (prior, kernel_size, sigma, penalty, constraint, penalty_weight, padding, ignore_index), got another; give logits"),
    Row("sigmoid", lambda: NACLLoss(sigmoid=True), TYPE, f"sigmoid: {OPTIONS} NACLLoss ("),
    Row("include_background", lambda: SVLSLoss(include_background=False), TYPE, f"include_background: {OPTIONS} SVLSLoss (kernel_size, sigma, ignore_index), got another; every class counts"),
    Row("weight", lambda: LabelSmoothingLoss(weight=torch.ones(4)), TYPE, f"weight: {OPTIONS} LabelSmoothingLoss (alpha, ignore_index), got another; classes are not weighted"),
    Row("lambda", lambda: EntropyPenaltyLoss(lambda_dice=1.0), TYPE, f"lambda_dice: {OPTIONS} EntropyPenaltyLoss (penalty_weight, ignore_index), got another"),
    Row("MONAI's NACLLoss", lambda: NACLLoss(classes=4, dim=2), TYPE, f"classes: {OPTIONS} NACLLoss ("),
    Row("kernel_ops", lambda: NACLLoss(kernel_ops="mean"), TYPE, f"kernel_ops: {OPTIONS} NACLLoss ("),
    Row("right", lambda: L1ACELoss(right=False), TYPE, f"right: {OPTIONS} L1ACELoss (num_bins, ignore_empty_classes, ignore_index), got another; a probability on an edge belongs to the bin below"),
    Row("misspelt", lambda: NACLLoss(penalty_wieght=0.2), TYPE, f"penalty_wieght: {OPTIONS} NACLLoss ("),
    # neighbor_prior
    Row("num_classes 1", lambda: neighbor_prior(Y, 1), VALUE, "num_classes: expected a whole number of at least 2, got 1"),
    Row("num_classes fraction", lambda: neighbor_prior(Y, 4.0), VALUE, "num_classes: expected a whole number of at least 2, got 4.0"),
    Row("no label", lambda: neighbor_prior(Y[:, :, :0], 4), VALUE, "target: expected at least one voxel, got shape (2, 1, 0, 5)"),
    Row("label of 2 dimensions", lambda: neighbor_prior(Y[0, 0], 4), VALUE, "target: expected shape (B, 1, *S), (B, *S) or (B, 4, *S) in 2D or 3D, got (6, 5)"),
    Row("too few classes", lambda: neighbor_prior(spoiled(Y, 3), 3), VALUE, "target: expected class indices from 0 to 2, got values from 0 to 3"),
    Row("ignore_index of prior", lambda: neighbor_prior(Y, 4, ignore_index="0"), VALUE, "ignore_index: expected a whole number or None, got '0'"),
]  # fmt: skip

REGIONS = (
    "region: expected one of 'all', 'predicted', 'plausible', 'predicted_band', 'foreground', 'union', 'band', or class "
    "indices, got "
)
BINS = CalibrationBins(torch.ones(1, 3, dtype=torch.int64), torch.ones(1, 3), torch.ones(1, 3))
METRICS = [
    # Probabilities
    Row("no class dimension", lambda: ECEMetric()(P[:, :, 0, 0], Y[:, :, 0, 0]), VALUE, "y_pred: expected shape (B, N, *S) with N classes or channels, got (2, 4)"),
    Row("sigmoid", lambda: CECEMetric()(X.sigmoid(), Y), VALUE, "y_pred: expected probabilities that sum to 1 over the classes, got another sum in "),
    Row("sums above 1", lambda: ECEMetric()(P / 2 + 0.25, Y), VALUE, "y_pred: expected probabilities that sum to 1 over the classes, got another sum in 60 of 60 voxels; apply softmax to the logits, not sigmoid; if each channel is a structure of its own with a sigmoid, set sigmoid=True"),
    Row("logits", lambda: CECEMetric()(X, Y), VALUE, "y_pred: expected probabilities, got "),
    Row("log-probabilities", lambda: NLLMetric()(X.log_softmax(1), Y), VALUE, "y_pred: expected probabilities, got 240 of 240 values outside [0, 1]: y_pred looks like logits; apply softmax"),
    Row("NaN", lambda: BrierMetric()(spoiled(P, math.nan), Y), VALUE, "y_pred: expected probabilities, got 1 of 240 values that are NaN or infinite"),
    Row("infinite", lambda: brier_score(spoiled(P, math.inf), Y), VALUE, "y_pred: expected probabilities, got 1 of 240 values that are NaN or infinite"),
    Row("one-hot of whole numbers", lambda: ECEMetric()(ONE_HOT, Y), TYPE, "y_pred: expected probabilities of a floating-point type, got torch.int64"),
    Row("complex", lambda: ECEMetric()(P.cfloat(), Y), TYPE, "y_pred: expected probabilities of a floating-point type, got torch.complex64"),
    Row("swapped", lambda: calibration_bins(Y, P), TYPE, "y_pred: expected probabilities of a floating-point type, got torch.int64"),
    Row("numpy", lambda: ECEMetric()(P.numpy(), Y), TYPE, "y_pred: expected a torch.Tensor or a list of them, got ndarray"),
    Row("list of numpy", lambda: ECEMetric()([P[0].numpy()], [Y[0]]), TYPE, "y_pred: expected a torch.Tensor, got ndarray"),
    Row("list of numpy labels", lambda: ECEMetric()([P[0]], [Y[0].numpy()]), TYPE, "y: expected a torch.Tensor, got ndarray"),
    Row("no label", lambda: NLLMetric()(P), TYPE, "y: expected a torch.Tensor or a list of them, got NoneType"),
    Row("no case", lambda: calibration_bins(P[:0], Y[:0]), VALUE, "y_pred: expected at least one voxel, got shape (0, 4, 6, 5)"),
    Row("no case in a metric", lambda: ECEMetric()(P[:0], Y[:0]), VALUE, "y_pred: expected at least one case, got none"),
    Row("texts", lambda: ECEMetric()("ab", "ab"), TYPE, "y_pred: expected a torch.Tensor or a list of them, got str"),
    Row("single numbers", lambda: ECEMetric()(torch.tensor(0.5), torch.tensor(1)), VALUE, "y_pred: expected shape (B, N, *S) with N classes or channels, got ()"),
    Row("empty list", lambda: ECEMetric()([], []), VALUE, "y_pred: expected at least one case, got none"),
    Row("no row", lambda: adaptive_calibration_error(P[:, :, :0], Y[:, :, :0]), VALUE, "y_pred: expected at least one voxel, got shape (2, 4, 0, 5)"),
    Row("no row for the NLL", lambda: negative_log_likelihood(P[..., :0], Y[..., :0]), VALUE, "y_pred: expected at least one voxel"),
    Row("channel last", lambda: ECEMetric()(P.movedim(1, -1), Y), VALUE, "y: expected shape (2, 1, 5, 4) (class index) or (2, 6, 5, 4) (one-hot) to match y_pred, got (2, 1, 6, 5); the classes are the second dimension of y_pred: y_pred.movedim(-1, 1)"),
    # Sigmoids
    Row("classes to one channel", lambda: ECEMetric()(P[:, :1], Y.clamp(max=2)), VALUE, "y: expected 0 or 1 in each channel, got other values in "),
    Row("one-hot of two classes to one channel", lambda: NLLMetric()(P[:, :1], ONE_HOT[:, :2]), VALUE, "y: expected shape (2, 1, 6, 5) (0 or 1 in each channel) to match y_pred, got (2, 2, 6, 5)"),
    Row("class index to sigmoids", lambda: CECEMetric(sigmoid=True)(P, Y), VALUE, "y: expected shape (2, 4, 6, 5) (0 or 1 in each channel) to match y_pred, got (2, 1, 6, 5)"),
    Row("logits of sigmoids", lambda: BrierMetric(sigmoid=True)(X, ONE_HOT), VALUE, "y_pred: expected probabilities, got "),
    Row("NaN sigmoid", lambda: calibration_bins(spoiled(P, math.nan), ONE_HOT, sigmoid=True), VALUE, "y_pred: expected probabilities, got 1 of 240 values that are NaN or infinite"),
    Row("fractions of sigmoids", lambda: CalibrationMetric(sigmoid=True)(P, spoiled(ONE_HOT.float(), 0.5)), VALUE, "y: expected 0 or 1 in each channel, got other values in 1 of 240 voxels"),
    Row("other label of sigmoids", lambda: CalibrationMetric(sigmoid=True, ignore_index=255)(P, spoiled(ONE_HOT, 254)), VALUE, "y: expected 0 or 1 in each channel (or ignore_index=255), got other values in 1 of 240 voxels"),
    Row("sigmoid text", lambda: ECEMetric(sigmoid="yes"), VALUE, "sigmoid: expected True or False, got 'yes'"),
    Row("sigmoid of a function", lambda: adaptive_calibration_error(P, ONE_HOT, sigmoid=1), VALUE, "sigmoid: expected True or False, got 1"),
    # Regions
    Row("no region", lambda: ECEMetric(region="everywhere"), VALUE, f"{REGIONS}'everywhere'"),
    Row("region of a function", lambda: brier_score(P, Y, region=1.5), VALUE, f"{REGIONS}1.5"),
    Row("empty structure", lambda: NLLMetric(region=[]), VALUE, f"{REGIONS}[]"),
    Row("structure of fractions", lambda: NLLMetric(region=[1.0]), VALUE, f"{REGIONS}[1.0]"),
    Row("negative class", lambda: Region.parse(-1), VALUE, f"{REGIONS}-1"),
    Row("region True", lambda: Region.parse(True), VALUE, f"{REGIONS}True"),
    Row("region None", lambda: Region.parse(None), VALUE, f"{REGIONS}None"),
    Row("negative radius", lambda: Region.parse("band(-1)"), VALUE, f"{REGIONS}'band(-1)'"),
    Row("kind", lambda: Region("edge"), VALUE, f"{REGIONS}'edge'"),
    Row("radius 0", lambda: Region.parse("band(0)"), VALUE, "region: expected a radius above 0 and at most 1000 voxels for 'band', got 0.0"),
    Row("radius infinite", lambda: Region("predicted_band", math.inf), VALUE, "region: expected a radius above 0 and at most 1000 voxels for 'predicted_band', got inf"),
    Row("threshold 1", lambda: Region.parse("plausible(1)"), VALUE, "region: expected a threshold of at least 0 and below 1 for 'plausible', got 1.0"),
    Row("threshold text", lambda: Region("plausible", "0.1"), VALUE, "region: expected a threshold of at least 0 and below 1 for 'plausible', got '0.1'"),
    Row("parameter of another", lambda: Region.parse("foreground(2)"), VALUE, "region: expected no parameter for 'foreground', got 2.0"),
    Row("classes of another", lambda: Region("all", classes=(1,)), VALUE, "region: expected no classes for 'all', got [1]"),
    Row("structure of no class", lambda: Region("structure"), VALUE, "region: expected class indices, got []"),
    Row("spacing of another", lambda: Region("union", spacing=(1, 1)), VALUE, "spacing: expected None for region 'union', got (1, 1)"),
    Row("spacing of a band 0", lambda: Region("band", spacing=(1, 0)), VALUE, "spacing: expected a number from 1e-06 to 1e+06 for each spatial axis, got (1, 0)"),
    Row("spacing of a band NaN", lambda: Region("band", spacing=(1, math.nan)), VALUE, "spacing: expected a number from 1e-06 to 1e+06 for each spatial axis, got (1, nan)"),
    Row("spacing of a band tiny", lambda: Region("band", spacing=(1, 1e-320)), VALUE, "spacing: expected a number from 1e-06 to 1e+06 for each spatial axis, got (1, 1e-320)"),
    Row("spacing of a band huge", lambda: Region("band", spacing=(1, 1e200)), VALUE, "spacing: expected a number from 1e-06 to 1e+06 for each spatial axis, got (1, 1e+200)"),
    Row("spacing of a band of one number", lambda: Region("band", spacing=5), VALUE, "spacing: expected a number from 1e-06 to 1e+06 for each spatial axis, got 5"),
    Row("spacing of a band of no axis", lambda: Region("band", spacing=()), VALUE, "spacing: expected a number from 1e-06 to 1e+06 for each spatial axis, got ()"),
    Row("radius huge", lambda: Region("band", 1e200), VALUE, "region: expected a radius above 0 and at most 1000 voxels for 'band', got 1e+200"),
    Row("radius of 200 digits", lambda: Region.parse(f"band({'9' * 200})"), VALUE, "region: expected a radius above 0 and at most 1000 voxels for 'band', got 1e+200"),
    Row("radius of many small voxels", lambda: Region("band", 2, spacing=(1, 0.001)), VALUE, "region: expected a radius above 0 and at most 1000 voxels for 'band', got 2"),
    Row("classes of one number", lambda: Region("structure", classes=3), VALUE, "region: expected class indices, got 3"),
    Row("classes of an array of fractions", lambda: Region("structure", classes=np.ones(2)), VALUE, "region: expected class indices, got ["),
    Row("no classes of a number", lambda: Region("all", classes=3), VALUE, "region: expected no classes for 'all', got 3"),
    Row("spacing of a band of other axes", lambda: ECEMetric(region=Region("band", spacing=(1, 1, 1)))(P, Y), VALUE, "spacing: expected one value for each of the 2 spatial axes, got (1.0, 1.0, 1.0)"),
    Row("class that is not there", lambda: ECEMetric(region=[1, 4])(P, Y), VALUE, "region: expected class indices from 0 to 3, got [1, 4]"),
    Row("class of sigmoids", lambda: ECEMetric(region=2, sigmoid=True)(P, ONE_HOT), VALUE, "region: expected class indices from 0 to 1, got [2]"),
    Row("two regions", lambda: ECEMetric(foreground_only=True, region="all"), VALUE, "foreground_only: expected None if region is given, got True and region='all'"),
    Row("one text of regions", lambda: CalibrationMetric(regions="all"), VALUE, "regions: expected a list of regions, got 'all'"),
    Row("unknown in regions", lambda: CalibrationMetric(regions=["all", "some"]), VALUE, f"{REGIONS}'some'"),
    Row("region twice", lambda: CalibrationMetric(regions=["all", "all"]), VALUE, "regions: expected each region once, got all, all"),
    Row("structure twice", lambda: CalibrationMetric(regions=[1], structures={"1": [1]}), VALUE, "regions: expected each region once, got structure_1, structure_1"),
    Row("structures of a list", lambda: CalibrationMetric(structures=[[1]]), VALUE, "structures: expected class indices by name, such as {\"heart\": [1, 2]}, got [[1]]"),
    Row("structure of a name", lambda: CalibrationMetric(structures={"heart": "all"}), VALUE, "structures: expected class indices for 'heart', got 'all'"),
    Row("structure of no classes", lambda: CalibrationMetric(structures={"heart": []}), VALUE, "structures: expected class indices for 'heart', got []"),
    Row("temperature 0", lambda: CalibrationMetric(temperature=0), VALUE, "temperature: expected a number above 0, got 0"),
    Row("temperature NaN", lambda: CalibrationMetric(temperature=math.nan), VALUE, "temperature: expected a number above 0, got nan"),
    Row("temperature text", lambda: CalibrationMetric(temperature="1"), VALUE, "temperature: expected a number above 0, got '1'"),
    Row("two temperatures", lambda: CalibrationMetric(temperature=torch.ones(2)), VALUE, "temperature: expected a number above 0, got tensor([1., 1.])"),
    Row("regions of smooth ECE", lambda: SmoothECEMetric(regions="all"), VALUE, "regions: expected a list of regions, got 'all'"),
    Row("lowest of 2", lambda: CalibrationMetric(lowest=2), VALUE, "lowest: expected a number from 0 to 1, got 2"),
    Row("negative draws", lambda: CalibrationMetric(draws=-1), VALUE, "draws: expected a whole number of at least 0, got -1"),
    Row("reduction if true", lambda: filled(CECEMetric()).aggregate_if_true("sum"), VALUE, 'reduction: expected "mean", "mean_batch" or "none", got \'sum\''),
    Row("nothing to aggregate if true", lambda: ECEMetric().aggregate_if_true(), VALUE, "ECEMetric: expected at least one case to aggregate, got none"),
    # Consistency
    Row("level above 1", lambda: consistency_bands(BINS, level=95), VALUE, "level: expected a number from 0 to 1, got 95"),
    Row("no draw", lambda: resampled_errors(BINS, draws=0), VALUE, "draws: expected a whole number of at least 1, got 0"),
    Row("negative seed", lambda: resampled_errors(BINS, seed=-1), VALUE, "seed: expected a whole number from 0 to 18446744073709551615, got -1"),
    Row("seed beyond 64 bits", lambda: consistency_bands(BINS, seed=2**64), VALUE, "seed: expected a whole number from 0 to 18446744073709551615, got 18446744073709551616"),
    Row("bins of a list", lambda: consistency_bands([1, 2]), TYPE, "bins: expected CalibrationBins, got list"),
    Row("bins of a tensor", lambda: resampled_errors(P), TYPE, "bins: expected CalibrationBins, got Tensor"),
    Row("expected bins", lambda: resampled_errors(CalibrationBins(*(torch.ones(1, 3) for _ in range(3)))), VALUE, "bins: expected whole counts, got torch.float32: give the observed bins"),
    # Ground truth
    Row("no channel", lambda: ECEMetric()(P, Y[:, 0]), VALUE, "y: expected shape (2, 1, 6, 5) (class index) or (2, 4, 6, 5) (one-hot) to match y_pred, got (2, 6, 5); add the channel: y.unsqueeze(1)"),
    Row("other size", lambda: ECEMetric()(P, Y[..., :4]), VALUE, "y: expected shape (2, 1, 6, 5) (class index)"),
    Row("fewer cases", lambda: ECEMetric()(list(P), list(Y[:1])), VALUE, "y: expected as many cases as y_pred, 2, got 1"),
    Row("class N", lambda: ECEMetric()(P, spoiled(Y, 4)), VALUE, "y: expected class indices from 0 to 3 or their one-hot encoding, got other values in 1 of 60 voxels"),
    Row("class -1", lambda: NLLMetric()(P, spoiled(Y, -1)), VALUE, "y: expected class indices from 0 to 3 or their one-hot"),
    Row("list and a batch of another size", lambda: ECEMetric()(list(P), Y[:1]), VALUE, "y: expected as many cases as y_pred, 2, got 1"),
    Row("fractions", lambda: BrierMetric()(P, Y + 0.5), VALUE, "y: expected class indices from 0 to 3 or their one-hot encoding, got other values in 60 of 60 voxels"),
    Row("NaN label", lambda: BrierMetric()(P, spoiled(Y.float(), math.nan)), VALUE, "y: expected class indices from 0 to 3 or their one-hot"),
    Row("two classes in a voxel", lambda: ECEMetric()(P, torch.ones_like(ONE_HOT)), VALUE, "y: expected class indices from 0 to 3 or their one-hot encoding, got other values in 60 of 60 voxels"),
    Row("complex label", lambda: ECEMetric()(P, Y.cfloat()), TYPE, "y: expected class indices or their one-hot encoding, got torch.complex64"),
    Row("ignored -1 as uint8", lambda: ECEMetric(ignore_index=-1)(P, spoiled(Y.byte(), 255)), VALUE, "y: expected class indices from 0 to 3 (or ignore_index=-1) or their one-hot"),
    # Options
    Row("num_bins 0", lambda: ECEMetric(num_bins=0), VALUE, "num_bins: expected a whole number from 1 to 10000, got 0"),
    Row("num_bins negative", lambda: calibration_bins(P, Y, num_bins=-5), VALUE, "num_bins: expected a whole number from 1 to 10000, got -5"),
    Row("num_bins fraction", lambda: CECEMetric(num_bins=2.5), VALUE, "num_bins: expected a whole number from 1 to 10000, got 2.5"),
    Row("num_bins True", lambda: CalibrationMetric(num_bins=True), VALUE, "num_bins: expected a whole number from 1 to 10000, got True"),
    Row("num_bins text", lambda: adaptive_calibration_error(P, Y, num_bins="15"), VALUE, "num_bins: expected a whole number from 1 to 10000, got '15'"),
    Row("num_bins huge", lambda: ECEMetric(num_bins=10**9), VALUE, "num_bins: expected a whole number from 1 to 10000, got 1000000000"),
    Row("num_bins None", lambda: ECEMetric(num_bins=None), VALUE, "num_bins: expected a whole number from 1 to 10000, got None"),
    Row("foreground_only text", lambda: ECEMetric(foreground_only="yes"), VALUE, "foreground_only: expected True or False, got 'yes'"),
    Row("foreground_only 1", lambda: NLLMetric(foreground_only=1), VALUE, "foreground_only: expected True or False, got 1"),
    Row("foreground_only of a function", lambda: brier_score(P, Y, foreground_only=0), VALUE, "foreground_only: expected True or False, got 0"),
    Row("classwise", lambda: calibration_bins(P, Y, classwise="no"), VALUE, "classwise: expected True or False, got 'no'"),
    Row("ignore_index fraction", lambda: ECEMetric(ignore_index=1.5), VALUE, "ignore_index: expected a whole number or None, got 1.5"),
    Row("ignore_index True", lambda: BrierMetric(ignore_index=True), VALUE, "ignore_index: expected a whole number or None, got True"),
    Row("ignore_index text", lambda: LogitMagnitudeMetric(ignore_index="255"), VALUE, "ignore_index: expected a whole number or None, got '255'"),
    Row("ignore_index of a function", lambda: negative_log_likelihood(P, Y, ignore_index=[1]), VALUE, "ignore_index: expected a whole number or None, got [1]"),
    Row("include_background text", lambda: DSCMetric(include_background="true"), VALUE, "include_background: expected True or False, got 'true'"),
    Row("reduction", lambda: filled(ECEMetric()).aggregate("sum"), VALUE, 'reduction: expected "mean", "mean_batch" or "none", got \'sum\''),
    Row("reduction None", lambda: filled(CECEMetric()).aggregate(None), VALUE, 'reduction: expected "mean", "mean_batch" or "none", got None'),
    Row("nothing to aggregate", lambda: BrierMetric().aggregate(), VALUE, "BrierMetric: expected at least one case to aggregate, got none"),
    Row("other number of classes", lambda: filled(ECEMetric())(P[:, :3] / P[:, :3].sum(1, keepdim=True), Y.clamp(max=2)), VALUE, "y_pred: expected 4 channels, as before, got 3"),
    # Options of MONAI's metrics
    Row("include_background", lambda: ECEMetric(include_background=False), TYPE, f"include_background: {OPTIONS} ECEMetric (num_bins, foreground_only, ignore_index, region, sigmoid), got another; region=\"foreground\" leaves out the voxels of class 0"),
    Row("reduction of a metric", lambda: DSCMetric(reduction="mean"), TYPE, f"reduction: {OPTIONS} DSCMetric (include_background), got another; give it to aggregate()"),
    Row("get_not_nans", lambda: DSCMetric(get_not_nans=True), TYPE, f"get_not_nans: {OPTIONS} DSCMetric (include_background), got another; values that are NaN"),
    Row("percentile", lambda: HD95Metric(percentile=95), TYPE, f"percentile: {OPTIONS} HD95Metric (include_background, spacing), got another; it is always the 95th"),
    Row("n_bins", lambda: CalibrationMetric(n_bins=15), TYPE, f"n_bins: {OPTIONS} CalibrationMetric (num_bins, foreground_only, ignore_index, region, sigmoid, regions, structures, temperature, draws, lowest, highest), got another; the option is called num_bins"),
    Row("calibration_reduction", lambda: CECEMetric(calibration_reduction="maximum"), TYPE, f"calibration_reduction: {OPTIONS} CECEMetric ("),
    Row("misspelt", lambda: LogitMagnitudeMetric(ignore_idx=0), TYPE, f"ignore_idx: {OPTIONS} LogitMagnitudeMetric (ignore_index), got another"),
    # Structures, and risk and coverage
    Row("structures of a text", lambda: VolumeMetric("heart"), VALUE, "structures: expected class indices by name, such as {\"heart\": [1, 2]}, got 'heart'"),
    Row("structures of None", lambda: expected_dsc(P, None), VALUE, "structures: expected class indices by name, such as {\"heart\": [1, 2]}, got None"),
    Row("structure of a region", lambda: ThresholdMetric({"heart": "foreground"}), VALUE, "structures: expected class indices for 'heart', got 'foreground'"),
    Row("structure that is not there", lambda: ExpectedDSCMetric({"heart": [1, 4]})(P, Y), VALUE, "structures: expected class indices from 0 to 3 for 'heart', got [1, 4]"),
    Row("two channels of a structure", lambda: VolumeMetric({"heart": [1, 2]}, sigmoid=True), VALUE, "structures: expected one channel of sigmoids for 'heart', got [1, 2]"),
    Row("second of one channel", lambda: threshold_counts(P[:, :1], Y.clamp(max=1), {"heart": [1]}), VALUE, "structures: expected a channel from 0 to 0 for 'heart', got [1]"),
    Row("volume of a voxel 0", lambda: structure_volumes(P, Y, {"heart": [1]}, voxel_volume=0), VALUE, "voxel_volume: expected a number above 0, got 0"),
    Row("volume of a voxel NaN", lambda: VolumeMetric({"heart": [1]})(P, Y, voxel_volume=math.nan), VALUE, "voxel_volume: expected a number above 0, got nan"),
    Row("logits to thresholds", lambda: ThresholdMetric({"heart": [1]})(X, Y), VALUE, "y_pred: expected probabilities, got "),
    Row("thresholds of a list", lambda: ThresholdCounts.from_dict([1]), VALUE, "fields: expected a dictionary of nested lists, got list"),
    Row("risk in no region", lambda: RiskCoverageMetric("everywhere"), VALUE, f"{REGIONS}'everywhere'"),
    Row("NaN to the risk", lambda: risk_coverage(spoiled(P, math.nan), Y), VALUE, "y_pred: expected probabilities, got 1 of 240 values that are NaN or infinite"),
    # Logits
    Row("whole logits", lambda: LogitMagnitudeMetric()(X.long(), Y), TYPE, "logits: expected a floating-point type, got torch.int64"),
    Row("NaN logits", lambda: LogitMagnitudeMetric()(X * math.nan, Y), VALUE, "logits: expected finite values, got NaN or infinite ones"),
    Row("logits of no voxel", lambda: LogitMagnitudeMetric()(X[..., :0], Y[..., :0]), VALUE, "logits: expected shape (B, N, *S) with at least one voxel, got (2, 4, 6, 0)"),
    Row("class N of logits", lambda: LogitMagnitudeMetric()(X, spoiled(Y, 4)), VALUE, "y: expected class indices from 0 to 3, got other values in 1 of 60 voxels"),
    Row("one-hot for logits", lambda: LogitMagnitudeMetric()(X, ONE_HOT), VALUE, "y: expected shape (2, 1, 6, 5) (class index) to match logits of shape (2, 4, 6, 5), got (2, 4, 6, 5)"),
    Row("complex label of logits", lambda: LogitMagnitudeMetric()(X, Y.cfloat()), TYPE, "y: expected class indices, got torch.complex64"),
    # Overlap and distance
    Row("probabilities to the DSC", lambda: DSCMetric()(P, Y), VALUE, "y_pred: expected masks of 0 and 1, got other values in 240 of 240 elements: give the one-hot encoding of the predicted class"),
    Row("class index to the DSC", lambda: DSCMetric()(Y, Y), VALUE, "y_pred: expected masks of 0 and 1, got other values in "),
    Row("NaN mask", lambda: dice(spoiled(ONE_HOT.float(), math.nan), ONE_HOT), VALUE, "y_pred: expected masks of 0 and 1, got other values in 1 of 240 elements"),
    Row("class N of the DSC", lambda: dice(ONE_HOT, spoiled(Y, 4)), VALUE, "y: expected class indices from 0 to 3, got other values in 1 of 60 voxels"),
    Row("two structures in a voxel", lambda: dice(torch.ones_like(ONE_HOT), Y), VALUE, "y_pred: expected one-hot masks because y is a class index, got 60 of 60 voxels in several classes or none"),
    Row("masks of no voxel", lambda: dice(ONE_HOT[:, :, :0], ONE_HOT[:, :, :0]), VALUE, "y_pred: expected at least one voxel, got shape (2, 4, 0, 5)"),
    Row("only the background", lambda: DSCMetric()(Y == 0, Y == 0), VALUE, "y_pred: expected at least 2 channels with include_background=False, got 1"),
    Row("spacing of other axes", lambda: hausdorff_distance_95(ONE_HOT, ONE_HOT, (1, 1, 1)), VALUE, "spacing: expected one value for each of the 2 spatial axes, got (1, 1, 1)"),
    Row("spacing 0", lambda: HD95Metric(spacing=(1, 0))(ONE_HOT, ONE_HOT), VALUE, "spacing: expected positive numbers, got (1, 0)"),
    Row("spacing NaN", lambda: HD95Metric(spacing=(1, math.nan))(ONE_HOT, ONE_HOT), VALUE, "spacing: expected positive numbers, got (1, nan)"),
    Row("spacing negative", lambda: HD95Metric(spacing=(-1, 1))(ONE_HOT, ONE_HOT), VALUE, "spacing: expected positive numbers, got (-1, 1)"),
    Row("spacing text", lambda: HD95Metric(spacing=("1", "1"))(ONE_HOT, ONE_HOT), VALUE, "spacing: expected positive numbers, got ('1', '1')"),
    Row("HD95 in 1D", lambda: hausdorff_distance_95(ONE_HOT[..., 0], ONE_HOT[..., 0]), VALUE, "y_pred: expected two or three spatial dimensions, got shape (2, 4, 6)"),
    Row("flat structures", lambda: structure_masks(Y[0], [1, 2]), VALUE, "structures: expected a list of class indices for each structure, got 1"),
    Row("no structures", lambda: structure_masks(Y[0], []), VALUE, "structures: expected at least one structure, got none"),
    Row("empty structure", lambda: structure_masks(Y[0], [[]]), VALUE, "structures: expected a list of class indices for each structure, got []"),
    Row("structure of text", lambda: structure_masks(Y[0], ["12"]), VALUE, "structures: expected a list of class indices for each structure, got '12'"),
    Row("structure of fractions", lambda: structure_masks(Y[0], [[1.5]]), VALUE, "structures: expected a whole number of at least 0, got 1.5"),
    Row("structures of a batch", lambda: structure_masks(Y, [[1]]), VALUE, "label: expected one map of class indices, (1, *S), got shape (2, 1, 6, 5)"),
    # Bins
    Row("bins of other shape", lambda: BINS + CalibrationBins(*(torch.ones(1, 4) for _ in range(3))), VALUE, "other: expected bins of the same shape, (1, 3), got (1, 4)"),
    Row("bins of lists", lambda: CalibrationBins([[1]], [[1.0]], [[1.0]]), TYPE, "count: expected a torch.Tensor, got list"),
    Row("classes of top-label bins", lambda: BINS.per_class(), VALUE, "per_class: expected classwise bins (B, N, bins), got shape (1, 3)"),
]  # fmt: skip


def filled(metric: Any) -> Any:
    """The metric after two cases."""
    metric(P, Y)
    return metric


def each(rows: list[Row]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in rows])


def assert_raises(row: Row) -> None:
    with pytest.raises(row.error) as caught:
        row.call()
    message = str(caught.value)
    assert message.startswith(row.message)
    assert "\n" not in message


@each(LOSSES)
def test_losses(row: Row) -> None:
    assert_raises(row)


@each(METRICS)
def test_metrics(row: Row) -> None:
    assert_raises(row)


@pytest.mark.parametrize("loss", [NACLLoss(), FocalLoss(), SVLSLoss(), LabelSmoothingLoss()], ids=repr)
@pytest.mark.parametrize("activation", [lambda x: x.softmax(1), torch.sigmoid, lambda _: ONE_HOT.float()])
def test_a_loss_of_what_softmax_or_sigmoid_gives_warns_once(loss: torch.nn.Module, activation: Callable) -> None:
    with pytest.warns(UserWarning, match=r"^input: expected logits, got only values from 0 to 1, as after softmax or"):
        loss(activation(X), Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(activation(X), Y)


def test_logits_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for logits in (X, torch.zeros_like(X), X.softmax(1) * 1.5, X.log_softmax(1)):
            NACLLoss()(logits, Y)


@pytest.mark.parametrize("metric", [ECEMetric, CECEMetric, CalibrationMetric, NLLMetric, BrierMetric])
def test_a_calibration_metric_of_one_hot_warns_once(metric: type) -> None:
    with pytest.warns(UserWarning, match=r"^y_pred: expected probabilities, got only 0 and 1, as in a one-hot"):
        metric()(ONE_HOT.float(), Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric()(ONE_HOT.float(), Y)


def test_probabilities_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one_soft_voxel = ONE_HOT.float()
        one_soft_voxel[-1, :, -1, -1] = 0.25
        for y_pred in (P, one_soft_voxel):
            ECEMetric()(y_pred, Y)
        ECEMetric(ignore_index=255)(ONE_HOT.float(), torch.full_like(Y, 255))  # no voxel at all


def test_what_a_user_sees() -> None:
    """In a process of its own: the error is the last line, and the warning comes once."""
    code = """
import torch
from calib_components.losses import NACLLoss
labels = torch.zeros(1, 1, 8, 8)
for _ in range(3):
    NACLLoss()(torch.randn(1, 2, 8, 8).softmax(1), labels)
NACLLoss(reduction="none")
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("TypeError: reduction: expected an option of NACLLoss (prior,")
    assert done.stderr.count("UserWarning: input: expected logits, got only values from 0 to 1") == 1


def test_numbers_of_numpy_are_accepted() -> None:
    NACLLoss(kernel_size=np.int64(3), penalty_weight=np.float32(0.1), ignore_index=np.int64(255))(X, Y)
    ECEMetric(num_bins=np.int32(10), ignore_index=np.uint8(255))(P, Y)


def test_arrays_of_numpy_describe_a_region() -> None:
    assert Region("structure", classes=np.array([3, 1])) == Region.parse([1, 3])
    assert Region("band", 3, spacing=np.array([1, 1.5])) == Region("band", 3, spacing=(1, 1.5))
    assert Region("band", 1000).limit == 1000


def test_every_loss_and_metric_is_in_a_table() -> None:
    named = {name for row in (*LOSSES, *METRICS) for name in row.call.__code__.co_names}
    classes = {name for module in (losses, metrics) for name in module.__all__ if name.endswith(("Loss", "Metric"))}
    assert classes <= named
