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
from calib_components.losses import defaults
from calib_components.losses.inputs import Target, check_target, plain

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
    votes, weight = neighbor_votes(checked, num_classes, prior, kernel_size, sigma, padding, dtype)
    return votes.to(dtype).mul_(weight)


def check_prior(prior: str, kernel_size: int, sigma: float, padding: str) -> None:
    """Raise `ValueError` for options that `neighbor_prior` does not accept."""
    check_choice("prior", prior, PRIORS)
    check_choice("padding", padding, PADDINGS)
    smallest = 3 if prior == "gaussian" else 1  # the weights of the SVLS kernel come from neighbours
    if not is_whole(kernel_size) or kernel_size < smallest or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size: expected an odd number of at least {smallest}, got {kernel_size!r}")
    check_number("sigma", sigma, 0.1)


def neighbor_votes(
    target: Target, num_classes: int, prior: str, kernel_size: int, sigma: float, padding: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The prior as `votes * weight`, with the votes in a small integer type where they are whole numbers.

    Args:
        target: Checked target.
        num_classes: Number of classes N.
        prior: As for `neighbor_prior`; so are the other options, all of them checked already.
        kernel_size: See `prior`.
        sigma: See `prior`.
        padding: See `prior`.
        dtype: Floating-point type of the weight, and of votes that are fractions.

    Returns:
        Votes, `(B, N, *S)`, and weight, a scalar or `(B, 1, *S)`.

    Raises:
        ValueError: The target holds probabilities, for which the prior is not defined.
    """
    if target.is_soft and prior not in PROPORTIONS:
        raise ValueError(f"target: expected class indices with the prior {prior!r}, got probabilities")
    radius = kernel_size // 2
    weight = 1.0
    if prior == "gaussian":
        votes = _svls_filter(_class_maps(target, num_classes, radius, "replicate"), kernel_size, sigma, dtype)
    elif prior in ("max", "min"):
        votes = _one_hot(_extreme_class(target, num_classes, prior, kernel_size, padding), num_classes)
    else:
        votes = _counts(_class_maps(target, num_classes, radius, padding), kernel_size)
        if prior == "mean":
            weight = float(kernel_size) ** (2 - votes.ndim)
        else:
            votes = _median_votes(votes) if prior == "median" else _mode_votes(votes)

    if prior in PROPORTIONS and target.mask is not None:
        total = functools.reduce(torch.add, votes.split(1, dim=1)).to(dtype)
        return votes, total.masked_fill_(total == 0, 1).reciprocal_()
    return votes, torch.full((), weight, dtype=dtype, device=votes.device)


def _counts(maps: Tensor, kernel_size: int) -> Tensor:
    """Number of voxels of each class in the window, from padded maps of the classes."""
    window = kernel_size ** (maps.ndim - 2)
    if not maps.is_floating_point() and window > torch.iinfo(maps.dtype).max:
        maps = maps.int()
    return _combine(maps, kernel_size, torch.add)


def _svls_filter(maps: Tensor, kernel_size: int, sigma: float, dtype: torch.dtype) -> Tensor:
    """Filter padded maps of the classes with the SVLS kernel.

    The kernel is a Gaussian whose centre is replaced by the sum of all its other weights: the voxel itself weighs 0.5,
    and the voxels around it share the other half. The sum over the voxels around is computed axis by axis, since a
    Gaussian is separable, and class by class, so that only one float tensor of the size of the maps is needed.
    """
    radius = kernel_size // 2
    taps = {i: math.exp(-(((i - radius) / sigma) ** 2) / 2) for i in range(kernel_size) if i != radius}
    filtered = []
    for centre in maps.split(1, dim=1):
        centre = centre.to(dtype)
        around, weight_around = torch.zeros_like(centre), 0.0
        for dim in range(2, centre.ndim):
            line = _shifted(centre + around, dim, kernel_size)
            centre, around = (_shifted(part, dim, kernel_size)[radius] for part in (centre, around))
            for i, tap in taps.items():
                around.add_(line[i], alpha=tap)
            weight_around += sum(taps.values()) * (1 + weight_around)
        filtered.append(around.mul_(0.5 / weight_around).add_(centre, alpha=0.5))
    return torch.cat(filtered, 1)


def _extreme_class(target: Target, num_classes: int, prior: str, kernel_size: int, padding: str) -> Tensor:
    """Largest or smallest class index in the window, `(B, 1, *S)`; -1 or N where no voxel counts."""
    padded = _pad(_compact_labels(target, num_classes), kernel_size // 2, padding)
    if prior == "max":
        return _combine(padded, kernel_size, torch.maximum)
    return _combine(padded.masked_fill(padded < 0, num_classes), kernel_size, torch.minimum)


def _mode_votes(counts: Tensor) -> Tensor:
    """One-hot of the class with the largest count, the first of several; all zero where no voxel counts."""
    num_classes = counts.shape[1]
    largest = counts.amax(1, keepdim=True).clamp_(min=1)
    first = counts.eq_(largest).mul_(num_classes - _classes(counts, num_classes)).amax(1, keepdim=True)
    return _one_hot(num_classes - first, num_classes)


def _median_votes(counts: Tensor) -> Tensor:
    """One-hot of the class at which the cumulative count reaches half of the total; all zero where no voxel counts."""
    cumulative = counts
    for k in range(1, counts.shape[1]):
        cumulative[:, k].add_(cumulative[:, k - 1])
    total = cumulative[:, -1:]
    before = cumulative.lt_((total - total // 2).clamp_(min=1))
    votes = before.neg()
    votes[:, 0].add_(1)
    votes[:, 1:].add_(before[:, :-1])
    return votes


def _one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """One-hot `(B, N, *S)` of class indices `(B, 1, *S)`, in their type; all zero where the index is not a class."""
    return labels.repeat(1, num_classes, *[1] * (labels.ndim - 2)).eq_(_classes(labels, num_classes))


def _classes(like: Tensor, num_classes: int) -> Tensor:
    """All class indices along the second dimension, in the type of the tensor `like`."""
    return torch.arange(num_classes, dtype=like.dtype, device=like.device).view(-1, *[1] * (like.ndim - 2))


def _compact_labels(target: Target, num_classes: int) -> Tensor:
    """Class indices `(B, 1, *S)` in the smallest type that holds -1 to N, with -1 at ignored voxels."""
    dtype = next(each for each in (torch.int8, torch.int16, torch.int32) if num_classes <= torch.iinfo(each).max)
    labels = target.labels.to(dtype)
    if target.mask is not None:
        labels = (labels + 1).mul_(target.mask.to(labels.dtype)).sub_(1)
    return labels.unsqueeze(1)


def _class_maps(target: Target, num_classes: int, radius: int, padding: str) -> Tensor:
    """Padded map of each class, `(B, N, *S)`: 0 and 1 in a small integer type, or probabilities."""
    if not target.is_soft:
        return _one_hot(_pad(_compact_labels(target, num_classes), radius, padding), num_classes)
    background, objects = target.labels[:, :1], target.labels[:, 1:]
    return torch.cat([_pad(background, radius, padding, outside=1.0), _pad(objects, radius, padding)], 1)


def _pad(tensor: Tensor, radius: int, padding: str, outside: float = 0) -> Tensor:
    """Pad the spatial dimensions of `(B, C, *S)` with the values at the border, or with `outside` for "background"."""
    if padding == "background":
        return F.pad(tensor, [radius] * 2 * (tensor.ndim - 2), value=outside)
    for dim in range(2, tensor.ndim):
        first, last = tensor.narrow(dim, 0, 1), tensor.narrow(dim, -1, 1)
        tensor = torch.cat([first] * radius + [tensor] + [last] * radius, dim)
    return tensor


def _shifted(tensor: Tensor, dim: int, size: int) -> list[Tensor]:
    """The `size` shifted views of a padded tensor that a sliding window along `dim` combines."""
    return [tensor.narrow(dim, i, tensor.shape[dim] - size + 1) for i in range(size)]


def _combine(padded: Tensor, size: int, operation: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Sum, maximum or minimum of each window, dimension by dimension."""
    for dim in range(2, padded.ndim):
        padded = functools.reduce(operation, _shifted(padded, dim, size))
    return padded
