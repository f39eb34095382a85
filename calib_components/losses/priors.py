"""Priors of the classes at a voxel from the labels around it, as used by NACL and for the soft labels of SVLS.

Priors depend on the labels only, so classes are counted in small integer types, one axis at a time; only results that
are fractions become floating point. Comparisons are made in place (`eq_`) to stay in the small type, which on a CPU is
several times faster than going through bool.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from calib_components.arguments import check_choice, check_count, check_ignore_index, check_number, is_whole
from calib_components.errors import InputError
from calib_components.losses import defaults
from calib_components.losses.inputs import Target, check_target, plain
from calib_components.losses.slabs import Slab, slabs

PRIORS = ("mean", "gaussian", "max", "min", "median", "mode")
PROPORTIONS = ("mean", "gaussian")  # the priors that are proportions of classes; also defined for probabilities
PADDINGS = ("replicate", "background")


def neighbor_prior(
    target: Tensor,
    num_classes: int,
    prior: str = defaults.PRIOR,
    kernel_size: int = defaults.KERNEL_SIZE,
    sigma: float = defaults.SIGMA,
    padding: str = defaults.PADDING,
    ignore_index: int | None = None,
) -> Tensor:
    """Prior of each class at each voxel, from the labels in the window around the voxel, itself included.

    `mean` is the proportion of the window with each class; `gaussian` weights the window with the SVLS kernel (see
    `SVLSLoss`). `max`, `min`, `median` and `mode` are one-hot: the largest, smallest, median and most frequent **class
    index** in the window, so they depend on how the classes are numbered. Ties of `mode` go to the smallest index, and
    the median of an even number of voxels is the lower one, as in `torch.mode` and `torch.median`.

    Ignored voxels are in no window: proportions are taken over the voxels that count, and sum to 1 at the border and
    next to ignored voxels too. If the window holds no voxel that counts, the prior is 0 for every class.

    Source: Murugesan et al., "Trust Your Neighbours: Penalty-Based Constraints for Model Calibration", MICCAI 2023,
    Tables 2 and 3, <https://arxiv.org/abs/2303.06268>

    Shape:
        - target: Class indices, `(B, 1, *S)` or `(B, *S)`; or probabilities, `(B, N, *S)`, with `mean` and `gaussian`.
          Four dimensions are read as `(B, 1, H, W)` or `(B, N, H, W)` if the second is 1 or N, otherwise as
          `(B, H, W, D)`.
        - output: `(B, N, *S)`, float32 (float64 for float64 probabilities).

    Args:
        target: Labels.
        num_classes: Number of classes N.
        prior: `"mean"`, `"gaussian"`, `"max"`, `"min"`, `"median"` or `"mode"`. Default: `"mean"`.
        kernel_size: Side length of the window (square or cube) in voxels, odd. Default: `3`.
        sigma: Standard deviation of `gaussian` in voxels. Default: `2.0`.
        padding: Labels beyond the image: `"replicate"` repeats the labels at the border, `"background"` takes class 0,
            as in the authors' code. `gaussian` always replicates, as it does there. Default: `"replicate"`.
        ignore_index: Label of the voxels to leave out; for class indices only. Default: `None`.

    Returns:
        The prior, which sums to 1 over the classes wherever the window holds a voxel that counts.

    Raises:
        TypeError: The target is not a tensor of a suitable type.
        ValueError: An option has an unknown value, or the target does not match the options.

    Examples:
        >>> import torch
        >>> from calib_components.losses import neighbor_prior
        >>> labels = torch.tensor([[[0, 0, 1], [0, 1, 1], [0, 1, 1]]])
        >>> neighbor_prior(labels, num_classes=2)[0, :, 1, 1]  # 4 and 5 of the 9 voxels
        tensor([0.4444, 0.5556])
    """
    check_prior(prior, kernel_size, sigma, padding)
    check_count("num_classes", num_classes, 2)
    check_ignore_index(ignore_index)
    target = plain(target, "target")
    if target.ndim == 3 or (target.ndim == 4 and target.shape[1] not in (1, num_classes)):
        target = target.unsqueeze(1)
    if target.ndim not in (4, 5) or target.shape[1] not in (1, num_classes):
        raise ValueError(
            f"target: expected shape (B, 1, *S), (B, *S) or (B, {num_classes}, *S) in 2D or 3D, "
            f"got {tuple(target.shape)}"
        )
    if target.numel() == 0:
        raise ValueError(f"target: expected at least one voxel, got shape {tuple(target.shape)}")
    dtype = torch.float64 if target.dtype == torch.float64 else torch.float32
    checked = check_target(target, num_classes, ignore_index, dtype)
    batch, _, *space = target.shape
    shape = torch.Size((batch, num_classes, *space))
    result = torch.empty(shape, dtype=dtype, device=target.device)
    for slab in slabs(shape, target.device):
        result[slab] = slab_prior(checked, slab, num_classes, prior, kernel_size, sigma, padding, dtype)
    return result


def check_prior(prior: str, kernel_size: int, sigma: float, padding: str) -> None:
    """Raise `ValueError` for options that `neighbor_prior` does not accept."""
    check_choice("prior", prior, PRIORS)
    check_choice("padding", padding, PADDINGS)
    smallest = 3 if prior == "gaussian" else 1  # the weights of the SVLS kernel come from neighbours
    if not is_whole(kernel_size) or kernel_size < smallest or kernel_size % 2 == 0:
        raise InputError(f"kernel_size: expected an odd number of at least {smallest}, got {kernel_size!r}")
    check_number("sigma", sigma, 0.1)


def slab_prior(
    target: Target,
    slab: Slab,
    num_classes: int,
    prior: str,
    kernel_size: int,
    sigma: float,
    padding: str,
    dtype: torch.dtype,
) -> Tensor:
    """The prior in a slab, `(b, N, h, ...)`, from the labels of the slab and of the rows around it.

    Args:
        target: Checked target of all voxels.
        slab: Which voxels.
        num_classes: Number of classes N.
        prior: As for `neighbor_prior`; so are the other options, all of them checked already.
        kernel_size: See `prior`.
        sigma: See `prior`.
        padding: See `prior`.
        dtype: Floating-point type of the result.

    Raises:
        ValueError: The target holds probabilities, for which the prior is not defined.
    """
    if target.is_soft and prior not in PROPORTIONS:
        raise ValueError(f"target: expected class indices with the prior {prior!r}, got probabilities")
    radius = kernel_size // 2
    rows, margins = _window_rows(target, slab, radius)
    filter_maps = functools.partial(_svls_filter, sigma=sigma) if prior == "gaussian" else _mean_filter
    padding = "replicate" if prior == "gaussian" else padding
    if target.is_soft:
        probabilities = target.labels[slab[0], :, rows]
        background = _pad(probabilities[:, :1], margins, padding, outside=1.0)
        maps = torch.cat([background, _pad(probabilities[:, 1:], margins, padding)], 1)
        return filter_maps(maps, kernel_size, dtype)

    labels = _pad(_compact_labels(target, slab[0], rows, num_classes), margins, padding)
    if prior in PROPORTIONS:
        proportions = filter_maps(_one_hot(labels, num_classes), kernel_size, dtype)
        if target.mask is not None:
            valid = filter_maps((labels >= 0).to(labels.dtype), kernel_size, dtype)
            proportions.div_(valid.masked_fill_(valid == 0, 1))
        return proportions
    if prior == "max":
        index = _combine(labels, kernel_size, torch.maximum)
    elif prior == "min":
        index = _combine(labels.masked_fill(labels < 0, num_classes), kernel_size, torch.minimum)
    elif prior == "median":
        index = _median_class(labels, kernel_size, num_classes)
    else:
        index = _mode_class(labels, kernel_size, num_classes)
    return _one_hot(index, num_classes).to(dtype)


def _mean_filter(maps: Tensor, kernel_size: int, dtype: torch.dtype) -> Tensor:
    """Mean of each window of padded maps."""
    counts = _counts(maps, kernel_size)
    return counts.to(dtype).mul_(float(kernel_size) ** (2 - maps.ndim))


def _counts(maps: Tensor, kernel_size: int) -> Tensor:
    """Sum of each window of padded maps."""
    window = kernel_size ** (maps.ndim - 2)
    if not maps.is_floating_point() and window > torch.iinfo(maps.dtype).max:
        maps = maps.int()
    return _combine(maps, kernel_size, torch.add)


def _svls_filter(maps: Tensor, kernel_size: int, dtype: torch.dtype, sigma: float) -> Tensor:
    """Filter padded maps with the SVLS kernel.

    The kernel is a Gaussian whose centre is replaced by the sum of all its other weights: the voxel itself weighs 0.5,
    and the voxels around it share the other half. The sum over the voxels around is computed axis by axis, since a
    Gaussian is separable, and voxels at the same distance on an axis are added first, since it is symmetric.
    """
    radius = kernel_size // 2
    taps = {i: math.exp(-((i / sigma) ** 2) / 2) for i in range(1, radius + 1)}
    line = centres = _shifted(maps, 2, kernel_size)
    around, weight_around = torch.zeros_like(centres[radius], dtype=dtype), 0.0
    for dim in range(2, maps.ndim):
        if dim > 2:
            line, centres = (_shifted(part, dim, kernel_size) for part in (centres[radius] + around, centres[radius]))
            around = _shifted(around, dim, kernel_size)[radius]
        for i, tap in taps.items():
            around = torch.add(around, line[radius - i] + line[radius + i], alpha=tap)
        weight_around += 2 * sum(taps.values()) * (1 + weight_around)
    return around.mul_(0.5 / weight_around).add_(centres[radius], alpha=0.5)


def _mode_class(labels: Tensor, kernel_size: int, num_classes: int) -> Tensor:
    """Class with the largest count, the smallest of several; N where no voxel counts."""
    counts = _counts(_one_hot(labels, num_classes), kernel_size)
    largest = counts.amax(1, keepdim=True).clamp_(min=1)
    return num_classes - counts.eq_(largest).mul_(num_classes - _classes(counts, num_classes)).amax(1, keepdim=True)


def _median_class(labels: Tensor, kernel_size: int, num_classes: int) -> Tensor:
    """Class at which the cumulative count reaches half of the total; N where no voxel counts."""
    up_to_class = _repeat(labels.masked_fill(labels < 0, num_classes), num_classes).le_(_classes(labels, num_classes))
    cumulative = _counts(up_to_class, kernel_size)
    total = cumulative[:, -1:]
    half = (total - total // 2).clamp_(min=1)
    return cumulative.lt_(half).sum(1, keepdim=True, dtype=cumulative.dtype)


def _one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """One-hot `(B, N, *S)` of class indices `(B, 1, *S)`, in their type; all zero where the index is not a class."""
    return _repeat(labels, num_classes).eq_(_classes(labels, num_classes))


def _repeat(labels: Tensor, num_classes: int) -> Tensor:
    return labels.repeat(1, num_classes, *[1] * (labels.ndim - 2))


def _classes(like: Tensor, num_classes: int) -> Tensor:
    """All class indices along the second dimension, in the type of the tensor `like`."""
    return torch.arange(num_classes, dtype=like.dtype, device=like.device).view(-1, *[1] * (like.ndim - 2))


def _compact_labels(target: Target, images: slice, rows: slice, num_classes: int) -> Tensor:
    """Class indices `(b, 1, h, ...)` in the smallest type that holds -1 to N, with -1 at ignored voxels."""
    dtype = next(each for each in (torch.int8, torch.int16, torch.int32) if num_classes <= torch.iinfo(each).max)
    labels = target.labels[images, rows].to(dtype)
    if target.mask is not None:
        labels = (labels + 1).mul_(target.mask[images, rows].to(dtype)).sub_(1)
    return labels.unsqueeze(1)


def _window_rows(target: Target, slab: Slab, radius: int) -> tuple[slice, list[tuple[int, int]]]:
    """The rows that windows centred in a slab reach, and by how much they reach beyond the image on each axis."""
    space = target.labels.shape[2 if target.is_soft else 1 :]
    first, last = slab[2].start - radius, slab[2].stop + radius
    margins = [(max(-first, 0), max(last - space[0], 0)), *[(radius, radius)] * (len(space) - 1)]
    return slice(max(first, 0), min(last, space[0])), margins


def _pad(tensor: Tensor, margins: list[tuple[int, int]], padding: str, outside: float = 0) -> Tensor:
    """Pad the spatial dimensions of `(B, C, *S)` with the values at the border, or with `outside` for "background"."""
    if padding == "background":
        return F.pad(tensor, [size for margin in reversed(margins) for size in margin], value=outside)
    for dim, (before, after) in enumerate(margins, 2):
        first, last = tensor.narrow(dim, 0, 1), tensor.narrow(dim, -1, 1)
        tensor = torch.cat([first] * before + [tensor] + [last] * after, dim)
    return tensor


def _shifted(tensor: Tensor, dim: int, size: int) -> list[Tensor]:
    """The `size` shifted views of a padded tensor that a sliding window along `dim` combines."""
    return [tensor.narrow(dim, i, tensor.shape[dim] - size + 1) for i in range(size)]


def _combine(padded: Tensor, size: int, operation: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Sum, maximum or minimum of each window, dimension by dimension."""
    for dim in range(2, padded.ndim):
        padded = functools.reduce(operation, _shifted(padded, dim, size))
    return padded
