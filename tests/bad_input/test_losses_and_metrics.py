"""Bad arguments of losses: each call raises one error whose line names the argument, or warns once."""

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

from calib_components import losses
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
