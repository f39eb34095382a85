"""L1 average calibration error."""

from __future__ import annotations

import torch
from torch import Tensor

from calib_components.errors import check_count
from calib_components.losses.base import CalibrationLoss, Extras
from calib_components.losses.slabs import slabs_of
from calib_components.losses.targets import Labels
from calib_components.probabilities import bin_index


class L1ACELoss(CalibrationLoss):
    """L1 average calibration error (mL1-ACE, hard bins): how far confidence and accuracy differ in
    each image.

    ```python
    p = input.softmax(1).flatten(2)
    y = F.one_hot(target.flatten(1), num_classes).mT
    in_bin = F.one_hot((p * num_bins).ceil().long().sub(1).clamp(min=0), num_bins)
    count = in_bin.sum(2)
    gap = (in_bin * (p - y).unsqueeze(-1)).sum(2).abs() / count.clamp(min=1)
    error = gap.sum(-1) / (count > 0).sum(-1)  # of each image and class
    loss = (error * (y.any(2) | (not ignore_empty_classes))).mean()
    ```

    For each image and class, the predicted probabilities are sorted into bins of equal width. The
    error is the mean over the bins that are not empty, unweighted, of the difference between the
    mean probability in the bin (confidence) and the fraction of its voxels that are of the class
    (accuracy). The loss is the mean over images and classes. The bin of a voxel and the accuracy
    are constants; the gradient comes from the mean probabilities.

    This is not a loss to train with alone, since a network that predicts the frequency of each
    class everywhere has a value of 0. Add it to others, as `L1ACEDiceCELoss` does.

    Source: Barfoot et al., "Average Calibration Losses for Reliable Uncertainty in Medical Image
    Segmentation", IEEE Transactions on Medical Imaging 2026, <https://arxiv.org/abs/2506.03942>;
    first in "Average Calibration Error: A Differentiable Loss for Improved Reliability in Image
    Segmentation", MICCAI 2024, <https://arxiv.org/abs/2403.06759>

    Departures from the authors' code: the edges of the bins are `i / num_bins`, as in
    `CalibrationBins`, where theirs are stretched by 1e-7; sums are float64; one channel with a
    sigmoid, a choice of classes and class weights are not supported. MONAI's pull request 9092
    proposes `HardL1ACELoss(softmax=True, to_onehot_y=True)`, the same loss.

    Shapes and errors are those of `CalibrationLoss`.

    Args:
        num_bins: Number of bins. Default: `20`.
        ignore_empty_classes: Whether the error of a class that an image does not contain is 0; it
            stays in the mean over classes. Default: `True`.
        ignore_index: Label of voxels that do not count, see `CalibrationLoss`. Default: `None`.
    """

    def __init__(
        self, num_bins: int = 20, ignore_empty_classes: bool = True, ignore_index: int | None = None
    ) -> None:
        super().__init__(ignore_index)
        check_count("num_bins", num_bins, 1, 1000)
        self.num_bins = num_bins
        self.ignore_empty_classes = ignore_empty_classes

    def prepare(self, logits: Tensor, labels: Labels) -> Extras:
        """Return the factor of each bin, `(B, N, num_bins)`, from a first pass over the voxels.

        The gap of a bin is `|sum(p - y)| / count`, which is the sum over its voxels of `p - y`
        times `sign / count`.
        """
        count, excess, present = self._sums_in_bins(logits, labels)
        num_filled = (count > 0).sum(-1, keepdim=True)
        factors = excess.sign() / (count * num_filled).clamp(min=1)
        if self.ignore_empty_classes:
            factors = factors * (present > 0)
        # L1-ACE is a mean over images and classes; the mean over the voxels divides by their number
        factors = (factors.mul(labels.num_counted()) / count[..., 0].numel()).to(logits.dtype)
        return lambda slab: (factors,)

    def voxel_loss(self, logits: Tensor, labels: Tensor, factors: Tensor) -> Tensor:
        p = logits.softmax(1)
        factor = factors.gather(2, bin_index(p.detach(), self.num_bins).flatten(2)).view_as(p)
        return (factor * (p - labels)).sum(1)

    def _sums_in_bins(self, logits: Tensor, labels: Labels) -> Tensor:
        """Number of voxels, sum of `p - y` and sum of `y` over all bins, `(3, B, N, num_bins)`."""
        shape = (3, *logits.shape[:2], self.num_bins)
        sums = torch.zeros(shape, dtype=torch.float64, device=logits.device)
        count, excess, present = sums
        for slab in slabs_of(logits):
            p = logits[:, :, slab].softmax(1)
            y = labels.probabilities(slab, p.dtype)
            ones = labels.zero_ignored(torch.ones_like(p, dtype=torch.float64), slab)
            bins = bin_index(p, self.num_bins).flatten(2)
            count.scatter_add_(2, bins, ones.flatten(2))
            excess.scatter_add_(2, bins, ((p.double() - y) * ones).flatten(2))
            present += y.flatten(2).sum(2, keepdim=True)
        return sums
