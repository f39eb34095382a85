"""Spatially varying label smoothing."""

from __future__ import annotations

from torch import Tensor, nn

from calib_components.losses.priors import check_prior, neighbor_votes
from calib_components.losses.targets import Target, cross_entropy, prepare


def svls_loss(
    input: Tensor, target: Tensor, *, kernel_size: int = 3, sigma: float = 2.0, ignore_index: int | None = None
) -> Tensor:
    """Function form of `SVLSLoss`, which says what it computes and what the arguments mean."""
    check_prior("gaussian", kernel_size, sigma, "replicate")
    logits, checked = prepare(input, target, ignore_index)
    shares, weight = neighbor_votes(checked, logits.shape[1], "gaussian", kernel_size, sigma, "replicate", logits.dtype)
    return cross_entropy(logits, Target(shares.mul_(weight), checked.counted))


class SVLSLoss(nn.Module):
    """Spatially varying label smoothing (SVLS): cross-entropy with labels that are soft at the borders of objects.

    The loss is the mean over voxels of `-sum_k t_k log s_k`, with `s = softmax(input)` and `t` the one-hot target
    filtered with the SVLS kernel: a Gaussian whose centre is replaced by the sum of all its other weights, normalised,
    so that the voxel itself weighs 0.5. Beyond the image the labels at the border are repeated.

    An ignored voxel adds nothing to `t`: the kernel is normalised over the voxels that count.

    Islam and Glocker, "Spatially Varying Label Smoothing: Capturing Uncertainty from Expert Annotations", IPMI 2021,
    https://arxiv.org/abs/2104.05788

    Shape:
        - input: logits, `(B, N, H, W)` or `(B, N, H, W, D)`; float16 and bfloat16 are computed in float32.
        - target: class index, `(B, 1, *S)` or `(B, *S)`, of any type that holds whole numbers; or probabilities,
          `(B, N, *S)`.
        - output: a scalar.

    Args:
        kernel_size: side of the kernel (square or cube) in voxels, odd and at least 3.
        sigma: standard deviation of the Gaussian, in voxels.
        ignore_index: label of voxels that do not count, or None. For class indices only. The loss is 0 where every
            voxel is ignored.

    Raises:
        TypeError: the input is not floating point, or the target not a tensor of numbers.
        ValueError: an even kernel, shapes that do not match, values that are not logits, labels or probabilities.

    Example:
        >>> loss = SVLSLoss(sigma=1.0)
        >>> logits = torch.randn(2, 4, 64, 64, requires_grad=True)
        >>> labels = torch.randint(4, (2, 1, 64, 64))
        >>> loss(logits, labels).backward()
    """

    def __init__(self, kernel_size: int = 3, sigma: float = 2.0, ignore_index: int | None = None) -> None:
        super().__init__()
        check_prior("gaussian", kernel_size, sigma, "replicate")
        self.kernel_size = kernel_size
        self.sigma = sigma
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return svls_loss(input, target, kernel_size=self.kernel_size, sigma=self.sigma, ignore_index=self.ignore_index)
