"""Spatially varying label smoothing."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from calib_components.arguments import check_ignore_index
from calib_components.losses import defaults
from calib_components.losses.base import CalibrationLoss
from calib_components.losses.inputs import check_inputs
from calib_components.losses.priors import check_prior, slab_prior
from calib_components.losses.slabs import Slab, mean_over_voxels


def svls_loss(
    input: Tensor,
    target: Tensor,
    *,
    kernel_size: int = defaults.KERNEL_SIZE,
    sigma: float = defaults.SIGMA,
    ignore_index: int | None = None,
) -> Tensor:
    """Functional form of `SVLSLoss`, which documents formula, shapes, options and errors."""
    check_prior("gaussian", kernel_size, sigma, "replicate")
    logits, checked = check_inputs(input, target, ignore_index)

    def voxel_losses(logits: Tensor, _: Tensor, slab: Slab) -> Tensor:
        soft_labels = slab_prior(
            checked, slab, logits.shape[1], "gaussian", kernel_size, sigma, "replicate", logits.dtype
        )
        return -(soft_labels * F.log_softmax(logits, dim=1)).sum(1)

    return mean_over_voxels(voxel_losses, logits, checked)


class SVLSLoss(CalibrationLoss):
    """Spatially varying label smoothing (SVLS): cross-entropy with labels that are soft at the borders of objects.

    ```python
    soft_labels = neighbor_prior(target, num_classes, "gaussian", kernel_size, sigma)
    loss = F.cross_entropy(input, soft_labels)
    ```

    The soft labels are the one-hot labels filtered with the SVLS kernel: a Gaussian whose centre is replaced by the sum
    of all its other weights, normalised, so that the centre weighs 0.5. Beyond the image the labels at the border are
    repeated.

    Source: Islam and Glocker, "Spatially Varying Label Smoothing: Capturing Uncertainty from Expert Annotations", IPMI
    2021, <https://arxiv.org/abs/2104.05788>

    Departures from the paper: ignored voxels contribute nothing to the soft labels, since the kernel is normalised over
    the voxels that count. The default `sigma` is that of the NACL paper. The authors' code locates the centre of every
    kernel as if its size were 3; here it is the kernel's own centre.

    Shape:
        - input: Logits, `(B, N, H, W)` or `(B, N, H, W, D)`. Float16 and bfloat16 are computed in float32.
        - target: Class indices, `(B, 1, *S)` or `(B, *S)`, of any type that holds whole numbers; or probabilities,
          `(B, N, *S)`.
        - output: A scalar.

    Args:
        kernel_size: Side length of the kernel (square or cube) in voxels, odd and at least 3. Default: `3`.
        sigma: Standard deviation of the Gaussian in voxels. Default: `2.0`.
        ignore_index: Label of voxels that do not count; for class indices only. If every voxel is ignored, the loss is
            0. Default: `None`.

    Raises:
        TypeError: The input is not floating point, or the target is not a tensor of numbers.
        ValueError: The kernel size is even or the sigma too small, the shapes do not match, or the values are not
            logits, class indices or probabilities.

    Examples:
        >>> import torch
        >>> from calib_components.losses import SVLSLoss
        >>> loss = SVLSLoss(sigma=1.0)
        >>> logits = torch.randn(2, 4, 64, 64, requires_grad=True)
        >>> labels = torch.randint(4, (2, 1, 64, 64))
        >>> loss(logits, labels).backward()
    """

    def __init__(
        self,
        kernel_size: int = defaults.KERNEL_SIZE,
        sigma: float = defaults.SIGMA,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        check_ignore_index(ignore_index)
        check_prior("gaussian", kernel_size, sigma, "replicate")
        self.kernel_size = kernel_size
        self.sigma = sigma
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return svls_loss(input, target, kernel_size=self.kernel_size, sigma=self.sigma, ignore_index=self.ignore_index)
