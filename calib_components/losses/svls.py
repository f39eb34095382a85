"""Spatially varying label smoothing."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from calib_components.losses.base import CalibrationLoss, Extras
from calib_components.losses.priors import Window
from calib_components.losses.targets import Labels


class SVLSLoss(CalibrationLoss):
    """Spatially varying label smoothing (SVLS): cross-entropy with labels that are soft at the
    borders of objects.

    ```python
    soft_labels = neighbor_prior(target, num_classes, "gaussian", kernel_size, sigma)
    loss = F.cross_entropy(input, soft_labels)
    ```

    The soft labels are the one-hot labels filtered with the SVLS kernel: a Gaussian whose centre is
    replaced by the sum of all its other weights, normalised, so that the centre weighs 0.5. Beyond
    the image the labels at the border are repeated.

    Source: Islam and Glocker, "Spatially Varying Label Smoothing: Capturing Uncertainty from Expert
    Annotations", IPMI 2021, <https://arxiv.org/abs/2104.05788>

    Departures from the paper: ignored voxels contribute nothing to the soft labels, since the
    kernel is normalised over the voxels that count. The default `sigma` is that of the NACL paper.
    The authors' code locates the centre of every kernel as if its size were 3; here it is the
    kernel's own centre.

    Shapes and errors are those of `CalibrationLoss`.

    Args:
        kernel_size: Side length of the kernel (square or cube) in voxels, odd and at least 3.
            Default: `3`.
        sigma: Standard deviation of the Gaussian in voxels. Default: `2.0`.
        ignore_index: Label of voxels that do not count, see `CalibrationLoss`. Default: `None`.
    """

    def __init__(
        self, kernel_size: int = 3, sigma: float = 2.0, ignore_index: int | None = None
    ) -> None:
        super().__init__(ignore_index)
        self.window = Window("gaussian", kernel_size, sigma)

    def prepare(self, logits: Tensor, labels: Labels) -> Extras:
        return lambda slab: (self.window.prior_of(labels, slab, logits.dtype),)

    def voxel_loss(self, logits: Tensor, labels: Tensor, soft_labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, soft_labels, reduction="none")
