"""Priors of the classes at a voxel from the labels around it, as used by NACL and for the soft
labels of SVLS.

Priors depend on the labels only, so classes are counted in small integer types, one axis at a time;
only results that are fractions become floating point.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from calib_components.errors import InputError, check_choice, check_count, check_number
from calib_components.losses.slabs import slabs_of
from calib_components.losses.targets import Labels, check_target, classes_like, one_hot, plain

PRIORS = ("mean", "gaussian", "max", "min", "median", "mode")
# The priors that are proportions of classes; also defined for probabilities
PROPORTIONS = ("mean", "gaussian")
PADDINGS = ("replicate", "background")


def neighbor_prior(
    target: Tensor,
    num_classes: int,
    prior: str = "mean",
    kernel_size: int = 3,
    sigma: float = 2.0,
    padding: str = "replicate",
    ignore_index: int | None = None,
) -> Tensor:
    """Prior of each class at each voxel, from the labels in the window around the voxel, itself
    included.

    `mean` is the proportion of the window with each class; `gaussian` weights the window with the
    SVLS kernel (see `SVLSLoss`). `max`, `min`, `median` and `mode` are one-hot: the largest,
    smallest, median and most frequent **class index** in the window, so they depend on how the
    classes are numbered. Ties of `mode` go to the smallest index, and the median of an even number
    of voxels is the lower one, as in `torch.mode` and `torch.median`.

    Ignored voxels are in no window: proportions are taken over the voxels that count, and sum to 1
    at the border and next to ignored voxels too. If the window holds no voxel that counts, the
    prior is 0 for every class.

    Source: Murugesan et al., "Trust Your Neighbours: Penalty-Based Constraints for Model
    Calibration", MICCAI 2023, Tables 2 and 3, <https://arxiv.org/abs/2303.06268>

    Shape:
        - target: Class indices, `(B, 1, *S)` or `(B, *S)`; or probabilities, `(B, N, *S)`, with
          `mean` and `gaussian`. Four dimensions are read as `(B, 1, H, W)` or `(B, N, H, W)` if the
          second is 1 or N, otherwise as `(B, H, W, D)`.
        - output: `(B, N, *S)`, float32 (float64 for float64 probabilities).

    Args:
        target: Labels.
        num_classes: Number of classes N.
        prior: `"mean"`, `"gaussian"`, `"max"`, `"min"`, `"median"` or `"mode"`. Default: `"mean"`.
        kernel_size: Side length of the window (square or cube) in voxels, odd. Default: `3`.
        sigma: Standard deviation of `gaussian` in voxels. Default: `2.0`.
        padding: Labels beyond the image: `"replicate"` repeats the labels at the border,
            `"background"` takes class 0, as in the authors' code. `gaussian` always replicates, as
            it does there. Default: `"replicate"`.
        ignore_index: Label of the voxels to leave out; for class indices only. Default: `None`.

    Raises:
        InputError: An option has an unknown value, or the target does not match the options.

    Examples:
        >>> import torch
        >>> from calib_components.losses import neighbor_prior
        >>> labels = torch.tensor([[[0, 0, 1], [0, 1, 1], [0, 1, 1]]])
        >>> neighbor_prior(labels, num_classes=2)[0, :, 1, 1]  # 4 and 5 of the 9 voxels
        tensor([0.4444, 0.5556])
    """
    window = Window(prior, kernel_size, sigma, padding)
    check_count("num_classes", num_classes, 2)
    target = plain("target", target)
    if target.ndim == 3 or (target.ndim == 4 and target.shape[1] not in (1, num_classes)):
        target = target.unsqueeze(1)
    if target.ndim not in (4, 5):
        raise InputError(
            f"target must be labels of 2D or 3D images, got shape {tuple(target.shape)}."
        )
    dtype = torch.float64 if target.dtype == torch.float64 else torch.float32
    shape = torch.Size((target.shape[0], num_classes, *target.shape[2:]))
    labels = check_target(target, shape, ignore_index, dtype)
    if labels.are_probabilities and prior not in PROPORTIONS:
        raise InputError(
            f"target must hold class indices for the prior {prior!r}, got probabilities."
        )
    result = torch.empty(shape, dtype=dtype, device=target.device)

    for slab in slabs_of(result):
        result[:, :, slab] = window.prior_of(labels, slab, dtype)
    return result


@dataclass(frozen=True)
class Window:
    """How a prior comes from the labels around a voxel.

    The attributes are the arguments `prior`, `kernel_size`, `sigma` and `padding` of
    `neighbor_prior`.
    """

    prior: str = "mean"
    kernel_size: int = 3
    sigma: float = 2.0
    padding: str = "replicate"

    def __post_init__(self) -> None:
        check_choice("prior", self.prior, PRIORS)
        check_choice("padding", self.padding, PADDINGS)
        # The weights of the SVLS kernel come from neighbours.
        check_count("kernel_size", self.kernel_size, 3 if self.prior == "gaussian" else 1, 99)
        if self.kernel_size % 2 == 0:
            raise InputError(f"kernel_size must be odd, got {self.kernel_size}.")
        check_number("sigma", self.sigma, 0.1)

    def prior_of(self, labels: Labels, slab: slice, dtype: torch.dtype) -> Tensor:
        """The prior in a slab, `(B, N, h, ...)`, from the labels of the slab and of the rows around
        it.
        """
        values = self._padded(labels, slab)
        if self.prior in PROPORTIONS:
            return self._proportions(values, labels, dtype)
        if self.prior == "max":
            index = _combine(values, self.kernel_size, torch.maximum)
        elif self.prior == "min":
            values = values.masked_fill(values < 0, labels.num_classes)
            index = _combine(values, self.kernel_size, torch.minimum)
        elif self.prior == "median":
            index = _median_class(values, self.kernel_size, labels.num_classes)
        else:
            index = _mode_class(values, self.kernel_size, labels.num_classes)
        return one_hot(index, labels.num_classes).to(dtype)

    def _proportions(self, values: Tensor, labels: Labels, dtype: torch.dtype) -> Tensor:
        """Weighted share of each class among the voxels of a window that count."""
        if labels.are_probabilities:
            return self._filter(values, dtype)
        proportions = self._filter(one_hot(values, labels.num_classes), dtype)
        if labels.has_ignored:
            counted = self._filter((values >= 0).to(values.dtype), dtype)
            proportions.div_(counted.masked_fill_(counted == 0, 1))
        return proportions

    def _padded(self, labels: Labels, slab: slice) -> Tensor:
        """Values of the labels in a slab and around it, padded beyond the image."""
        values, radius = labels.values, self.kernel_size // 2
        for dim, length in enumerate(values.shape[2:], 2):
            first, last = (slab.start, slab.stop) if dim == 2 else (0, length)
            places = torch.arange(first - radius, last + radius, device=values.device)
            values = values.index_select(dim, places.clamp(0, length - 1))
            if self.padding == "background" and self.prior != "gaussian":
                beyond = ((places < 0) | (places >= length)).view(
                    -1, *[1] * (values.ndim - dim - 1)
                )
                values = values.masked_fill(beyond, 0)
                if labels.are_probabilities:
                    values[:, :1].masked_fill_(beyond, 1)
        return values

    def _filter(self, maps: Tensor, dtype: torch.dtype) -> Tensor:
        """Weighted mean of each window of padded maps."""
        if self.prior == "gaussian":
            return _svls_filter(maps, self.kernel_size, self.sigma, dtype)
        return (
            _counts(maps, self.kernel_size)
            .to(dtype)
            .mul_(float(self.kernel_size) ** (2 - maps.ndim))
        )


def _counts(maps: Tensor, size: int) -> Tensor:
    """Sum of each window of padded maps."""
    if not maps.is_floating_point() and size ** (maps.ndim - 2) > torch.iinfo(maps.dtype).max:
        maps = maps.int()
    return _combine(maps, size, torch.add)


def _svls_filter(maps: Tensor, size: int, sigma: float, dtype: torch.dtype) -> Tensor:
    """Filter padded maps with the SVLS kernel.

    The kernel is a Gaussian whose centre is replaced by the sum of all its other weights: the voxel
    itself weighs 0.5, and the voxels around it share the other half. A Gaussian is separable, so
    the sum is computed axis by axis, for the centre and for what is around it: a difference of the
    two would lose all digits where the Gaussian is narrow.
    """
    radius = size // 2
    taps = {i: math.exp(-((i / sigma) ** 2) / 2) for i in range(1, radius + 1)}
    centre, around = maps, torch.zeros(1, dtype=dtype, device=maps.device).expand(maps.shape)
    for dim in range(2, maps.ndim):
        # The first axis stays in the small type of the labels
        line = _shifted(maps if dim == 2 else centre + around, dim, size)
        centre, around = (_shifted(part, dim, size)[radius] for part in (centre, around))
        for i, tap in taps.items():
            around = torch.add(around, line[radius - i] + line[radius + i], alpha=tap)
    # The sum of the weights of a Gaussian but for its centre, which is 1
    weight_around = math.expm1((maps.ndim - 2) * math.log1p(2 * sum(taps.values())))
    return around.mul_(0.5 / weight_around).add_(centre, alpha=0.5)


def _mode_class(values: Tensor, size: int, num_classes: int) -> Tensor:
    """Class with the largest count, the smallest of several; N where no voxel counts."""
    counts = _counts(one_hot(values, num_classes), size)
    largest = counts.amax(1, keepdim=True).clamp_(min=1)
    # Descending, so that the largest is that of the smallest class
    ranks = num_classes - classes_like(counts, num_classes)
    return num_classes - counts.eq_(largest).mul_(ranks).amax(1, keepdim=True)


def _median_class(values: Tensor, size: int, num_classes: int) -> Tensor:
    """Class at which the cumulative count reaches half of the total; N where no voxel counts."""
    values = values.masked_fill(values < 0, num_classes)
    repeated = values.repeat(1, num_classes, *[1] * (values.ndim - 2))
    cumulative = _counts(repeated.le_(classes_like(values, num_classes)), size)
    total = cumulative[:, -1:]
    half = (total - total // 2).clamp_(min=1)
    return cumulative.lt_(half).sum(1, keepdim=True, dtype=cumulative.dtype)


def _shifted(tensor: Tensor, dim: int, size: int) -> list[Tensor]:
    """The `size` shifted views of a padded tensor that a sliding window along `dim` combines."""
    return [tensor.narrow(dim, i, tensor.shape[dim] - size + 1) for i in range(size)]


def _combine(padded: Tensor, size: int, operation: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Sum, maximum or minimum of each window, dimension by dimension."""
    for dim in range(2, padded.ndim):
        padded = functools.reduce(operation, _shifted(padded, dim, size))
    return padded
