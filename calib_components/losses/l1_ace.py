"""L1 average calibration error."""

from __future__ import annotations

import torch
from torch import Tensor

from calib_components.arguments import check_flag, check_ignore_index
from calib_components.losses import defaults
from calib_components.losses.base import CalibrationLoss
from calib_components.losses.inputs import Target, check_inputs
from calib_components.losses.slabs import Slab, VoxelLosses, mean_over_voxels, slabs
from calib_components.metrics.one_pass import check_num_bins
from calib_components.metrics.sorted_voxels import LANES, bin_index, sum_by_index


def l1_ace_loss(
    input: Tensor,
    target: Tensor,
    *,
    num_bins: int = defaults.NUM_BINS,
    ignore_empty_classes: bool = defaults.IGNORE_EMPTY_CLASSES,
    ignore_index: int | None = None,
) -> Tensor:
    """Functional form of `L1ACELoss`, which documents formula, shapes, options and errors."""
    check_ace_options(num_bins, ignore_empty_classes)
    logits, checked = check_inputs(input, target, ignore_index)
    return mean_over_voxels(ace_of_voxels(logits, checked, num_bins, ignore_empty_classes), logits, checked)


class L1ACELoss(CalibrationLoss):
    """L1 average calibration error (mL1-ACE, hard bins): how far confidence and accuracy differ in each image.

    ```python
    p = input.softmax(1).flatten(2)
    y = F.one_hot(target.flatten(1), num_classes).mT
    in_bin = F.one_hot((p * num_bins).ceil().long().sub(1).clamp(min=0), num_bins)
    count = in_bin.sum(2)
    gap = (in_bin * (p - y).unsqueeze(-1)).sum(2).abs() / count.clamp(min=1)
    error = gap.sum(-1) / (count > 0).sum(-1)  # of each image and class
    loss = (error * (y.any(2) | (not ignore_empty_classes))).mean()
    ```

    For each image and class, the predicted probabilities are sorted into bins of equal width. The error is the mean
    over the bins that are not empty, unweighted, of the difference between the mean probability in the bin (confidence)
    and the fraction of its voxels that are of the class (accuracy). The loss is the mean over images and classes. The
    bin of a voxel and the accuracy are constants; the gradient comes from the mean probabilities.

    This is not a loss to train with alone, since a network that predicts the frequency of each class everywhere has a
    value of 0. Add it to others, as `L1ACEDiceCELoss` does.

    Without `ignore_empty_classes`, the value is the mean of `calibration_bins(probabilities, target, num_bins,
    classwise=True, region="all").average_error()` over the images.

    Source: Barfoot et al., "Average Calibration Losses for Reliable Uncertainty in Medical Image Segmentation", IEEE
    Transactions on Medical Imaging 2026, <https://arxiv.org/abs/2506.03942>; first in "Average Calibration Error: A
    Differentiable Loss for Improved Reliability in Image Segmentation", MICCAI 2024,
    <https://arxiv.org/abs/2403.06759>

    Departures from the authors' code: the edges of the bins are `i / num_bins`, as in `calibration_bins`, where theirs
    are stretched by 1e-7; sums are float64; one channel with a sigmoid, a choice of classes and class weights are not
    supported. `num_bins` and `ignore_empty_classes` are called so in `HardL1ACELoss`, which is proposed for MONAI (pull
    request 9092): with `softmax=True, to_onehot_y=True` it is the same loss of class indices `(B, 1, *S)`.

    Shape:
        - input: Logits, `(B, N, H, W)` or `(B, N, H, W, D)`. Float16 and bfloat16 are computed in float32.
        - target: Class indices, `(B, 1, *S)` or `(B, *S)`, of any type that holds whole numbers; or probabilities,
          `(B, N, *S)`.
        - output: A scalar.

    Args:
        num_bins: Number of bins. Default: `20`.
        ignore_empty_classes: Whether the error of a class that an image does not contain counts as 0. Default: `True`.
        ignore_index: Label of voxels that do not count; for class indices only. If every voxel is ignored, the loss is
            0. Default: `None`.

    Raises:
        TypeError: The input is not floating point, or the target is not a tensor of numbers.
        ValueError: The number of bins is not from 1 to 10,000, the shapes do not match, or the values are not logits,
            class indices or probabilities.

    Examples:
        >>> import torch
        >>> from monai.losses import DiceCELoss
        >>> from calib_components.losses import L1ACELoss
        >>> dice_ce, l1_ace = DiceCELoss(to_onehot_y=True, softmax=True), L1ACELoss()
        >>> logits = torch.randn(2, 4, 64, 64, requires_grad=True)
        >>> labels = torch.randint(4, (2, 1, 64, 64))
        >>> (dice_ce(logits, labels) + 0.3 * l1_ace(logits, labels)).backward()
    """

    def __init__(
        self,
        num_bins: int = defaults.NUM_BINS,
        ignore_empty_classes: bool = defaults.IGNORE_EMPTY_CLASSES,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        check_ignore_index(ignore_index)
        check_ace_options(num_bins, ignore_empty_classes)
        self.num_bins = num_bins
        self.ignore_empty_classes = ignore_empty_classes
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return l1_ace_loss(
            input,
            target,
            num_bins=self.num_bins,
            ignore_empty_classes=self.ignore_empty_classes,
            ignore_index=self.ignore_index,
        )


def check_ace_options(num_bins: int, ignore_empty_classes: bool) -> None:
    """Raise `ValueError` unless the options of `L1ACELoss` are suitable."""
    check_num_bins(num_bins)
    check_flag("ignore_empty_classes", ignore_empty_classes)


def ace_of_voxels(logits: Tensor, target: Target, num_bins: int, ignore_empty_classes: bool) -> VoxelLosses:
    """Divide L1-ACE among the voxels: the mean of the returned losses over the voxels that count is L1-ACE.

    With `p` and `y` the predicted and the true probability of a class, the gap of a bin is `|sum(p - y)| / count`. This
    is the sum over its voxels of `p - y` times a factor, `sign / count`. A first pass over the slabs finds the factors.
    """
    factors = _bin_factors(logits.detach(), target.labels, target.mask, int(num_bins), ignore_empty_classes)

    def voxel_losses(logits: Tensor, labels: Tensor, slab: Slab) -> Tensor:
        p = logits.softmax(1)
        bins = _bins(p.detach(), num_bins).long()
        factor = factors[slab[0]].gather(2, bins).view(p.shape)
        return (factor * (p - true_probabilities(labels, p))).sum(1)

    return voxel_losses


def true_probabilities(labels: Tensor, p: Tensor) -> Tensor:
    """Labels of a checked target as probabilities, in shape and type of the predicted ones."""
    return labels if labels.is_floating_point() else torch.zeros_like(p).scatter_(1, labels.unsqueeze(1), 1)


def _bins(p: Tensor, num_bins: int) -> Tensor:
    """Bin of each probability, `(B, N, voxels)`; of NaN, which is an error on a CPU only, any bin."""
    return bin_index(p.flatten(2).double(), num_bins).clamp_(min=0)


@torch.library.custom_op(
    "calib_components::ace_bin_factors",
    mutates_args=(),
    schema="(Tensor logits, Tensor labels, Tensor? mask, int num_bins, bool ignore_empty_classes) -> Tensor",
)
def _bin_factors(
    logits: Tensor, labels: Tensor, mask: Tensor | None, num_bins: int, ignore_empty_classes: bool
) -> Tensor:
    """Factor of each bin, `(B, N, num_bins)`; an operator of its own, in slabs in compiled code, too."""
    num_images, num_classes = logits.shape[:2]
    count, excess = torch.zeros(2, num_images, num_classes, num_bins, dtype=torch.float64, device=logits.device)
    present = torch.zeros(num_images, num_classes, 1, dtype=torch.bool, device=logits.device)
    for slab in slabs(logits.shape, logits.device):
        images, _, rows = slab
        p = logits[slab].softmax(1)
        y = true_probabilities(labels[slab] if labels.is_floating_point() else labels[images, rows], p)
        bins, p, y = _bins(p, num_bins), p.flatten(2), y.flatten(2)
        valid = None
        if mask is not None:
            valid = mask[images, rows].flatten(1).unsqueeze(1).expand_as(p)
            p, y = p * valid, y * valid
        rows_of_bins, voxels = p.shape[0] * num_classes, p.shape[2]
        size = rows_of_bins * num_bins
        first = torch.arange(0, size, num_bins, dtype=torch.int32, device=p.device).view(-1, num_classes, 1)
        lane = torch.arange(voxels, dtype=torch.int32, device=p.device) & (LANES - 1)
        index = bins + first + lane * size
        count[images] += sum_by_index(index, valid, size).view(-1, num_classes, num_bins)
        excess[images] += sum_by_index(index, p.double() - y, size).view(-1, num_classes, num_bins)
        present[images] |= (y > 0).any(2, keepdim=True)
    num_filled = (count > 0).sum(-1, keepdim=True)
    num_valid = count[:, 0].sum()
    factors = excess.sign() / (count * num_filled).clamp(min=1) * num_valid / (num_images * num_classes)
    return (factors * present if ignore_empty_classes else factors).to(logits.dtype)


@_bin_factors.register_fake
def _(logits: Tensor, labels: Tensor, mask: Tensor | None, num_bins: int, ignore_empty_classes: bool) -> Tensor:
    return logits.new_empty(*logits.shape[:2], num_bins)
