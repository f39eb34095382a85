"""What the labels around a voxel say about its class: the priors of NACL, and the soft labels of SVLS.

Priors depend on the labels alone, so classes are counted in small integers, one axis at a time; only the results that
are fractions by nature become floating point. Comparisons are made in place (`eq_`) to stay in the small type: on a CPU
that is several times faster than by way of bool.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from calib_components.losses.targets import Target, plain, prepare_target

PRIORS = ("mean", "gaussian", "max", "min", "median", "mode")
SHARES = ("mean", "gaussian")  # the priors that are shares of the window, defined for probabilities too
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
    """Prior of each class at each voxel, from the labels in the window around it, the voxel itself included.

    `mean` is the share of the window that has the class; `gaussian` weighs the window with the SVLS kernel (see
    `SVLSLoss`). `max`, `min`, `median` and `mode` are one-hot: the largest, smallest, median and most frequent **class
    index** in the window, so they depend on how the classes are numbered. A tie of `mode` goes to the smallest index,
    and the median of an even number of voxels is the lower one, as in `torch.mode` and `torch.median`.

    An ignored voxel is in no window: shares are of the voxels that count, and sum to 1 next to ignored voxels and at
    the border too. They are all 0 where the window holds no voxel that counts.

    Shape:
        - target: `(B, 1, *S)` or `(B, *S)` class index, or `(B, N, *S)` probabilities (`mean` and `gaussian` only).
          Four dimensions are `(B, 1, H, W)` or `(B, N, H, W)` if the second is 1 or N, and else `(B, H, W, D)`.
        - output: `(B, N, *S)`, float32 (float64 for float64 probabilities).

    Args:
        target: labels.
        num_classes: N.
        prior: "mean", "gaussian", "max", "min", "median" or "mode".
        kernel_size: side of the window (a square or a cube) in voxels, odd.
        sigma: of `gaussian`, in voxels.
        padding: what lies beyond the image: "replicate" repeats the labels at the border; "background" is class 0,
            as in the authors' code. `gaussian` replicates with either, there too.
        ignore_index: label of the voxels to leave out, or None.

    Raises:
        TypeError: the target is not a tensor of a suitable type.
        ValueError: an option that is not one of the above, or a target that does not fit them.

    Example:
        >>> labels = torch.tensor([[[0, 0, 1], [0, 1, 1], [0, 1, 1]]])
        >>> neighbor_prior(labels, num_classes=2)[0, :, 1, 1]  # 4 and 5 of the 9 voxels
        tensor([0.4444, 0.5556])
    """
    check_prior(prior, kernel_size, sigma, padding)
    target = plain(target, "target")
    if target.ndim == 3 or (target.ndim == 4 and target.shape[1] not in (1, num_classes)):
        target = target.unsqueeze(1)
    if target.ndim not in (4, 5) or target.shape[1] not in (1, num_classes):
        raise ValueError(
            f"target: expected (B, 1, *S), (B, *S) or (B, {num_classes}, *S) in 2D or 3D, got {tuple(target.shape)}"
        )
    dtype = torch.float64 if target.dtype == torch.float64 else torch.float32
    checked = prepare_target(target, num_classes, ignore_index, dtype)
    votes, weight = neighbor_votes(checked, num_classes, prior, kernel_size, sigma, padding, dtype)
    return votes.to(dtype).mul_(weight)


def check_prior(prior: str, kernel_size: int, sigma: float, padding: str) -> None:
    """Raises `ValueError` for options that `neighbor_prior` does not have."""
    if prior not in PRIORS:
        raise ValueError(f"prior: expected one of {PRIORS}, got {prior!r}")
    if padding not in PADDINGS:
        raise ValueError(f"padding: expected one of {PADDINGS}, got {padding!r}")
    smallest = 3 if prior == "gaussian" else 1  # the SVLS kernel is made of neighbours
    if not isinstance(kernel_size, int) or kernel_size < smallest or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size: expected an odd number, at least {smallest}, got {kernel_size!r}")
    if not 0.1 <= sigma < math.inf:
        raise ValueError(f"sigma: expected at least 0.1 voxels, got {sigma}")


def neighbor_votes(
    target: Target, num_classes: int, prior: str, kernel_size: int, sigma: float, padding: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The prior as `votes * weight`, where the votes are small integers if whole numbers can say it.

    Takes the arguments of `neighbor_prior` once checked, and the floating-point type of what is fractional.

    Returns:
        votes, `(B, N, *S)`, and weight, a scalar or `(B, 1, *S)`.
    """
    if target.is_soft and prior not in SHARES:
        raise ValueError(f"target: the prior {prior!r} is defined for class indices only, got probabilities")
    radius = kernel_size // 2
    weight = 1.0
    if prior == "gaussian":
        votes = _svls_shares(_class_maps(target, num_classes, radius, "replicate"), kernel_size, sigma, dtype)
    elif prior in ("max", "min"):
        votes = _one_hot(_extreme_class(target, num_classes, prior, kernel_size, padding), num_classes)
    else:
        votes = _counts(_class_maps(target, num_classes, radius, padding), kernel_size)
        if prior == "mean":
            weight = kernel_size ** (2 - votes.ndim)
        else:
            votes = _median_votes(votes) if prior == "median" else _mode_votes(votes)

    if prior in SHARES and target.counted is not None:
        total = functools.reduce(torch.add, votes.split(1, dim=1)).to(dtype)
        return votes, total.masked_fill_(total == 0, 1).reciprocal_()
    return votes, torch.full((), weight, dtype=dtype, device=votes.device)


def _counts(maps: Tensor, kernel_size: int) -> Tensor:
    """How many voxels of the window each class has, from padded maps of the classes."""
    window = kernel_size ** (maps.ndim - 2)
    if not maps.is_floating_point() and window > torch.iinfo(maps.dtype).max:
        maps = maps.int()
    return _combine(maps, kernel_size, torch.add)


def _svls_shares(maps: Tensor, kernel_size: int, sigma: float, dtype: torch.dtype) -> Tensor:
    """Padded maps of the classes filtered with the SVLS kernel.

    The kernel is a Gaussian whose centre is replaced by the sum of all the others: the voxel itself weighs 0.5, and the
    voxels around it share the other half. What is around is gathered axis by axis, since a Gaussian is separable; and
    class by class, to need one float tensor of the size of the maps and not several.
    """
    radius = kernel_size // 2
    taps = {i: math.exp(-(((i - radius) / sigma) ** 2) / 2) for i in range(kernel_size) if i != radius}
    shares = []
    for centre in maps.split(1, dim=1):
        centre = centre.to(dtype)
        around, weight_around = torch.zeros_like(centre), 0.0
        for dim in range(2, centre.ndim):
            line = _shifted(centre + around, dim, kernel_size)
            centre, around = (_shifted(part, dim, kernel_size)[radius] for part in (centre, around))
            for i, tap in taps.items():
                around.add_(line[i], alpha=tap)
            weight_around += sum(taps.values()) * (1 + weight_around)
        shares.append(around.mul_(0.5 / weight_around).add_(centre, alpha=0.5))
    return torch.cat(shares, 1)


def _extreme_class(target: Target, num_classes: int, prior: str, kernel_size: int, padding: str) -> Tensor:
    """Largest or smallest class index in the window, `(B, 1, *S)`; -1 or N where nothing counts."""
    padded = _pad(_class_index(target, num_classes), kernel_size // 2, padding)
    if prior == "max":
        return _combine(padded, kernel_size, torch.maximum)
    return _combine(padded.masked_fill(padded < 0, num_classes), kernel_size, torch.minimum)


def _mode_votes(counts: Tensor) -> Tensor:
    """One-hot of the class with the largest count, the first of equals; all zero where nothing counts."""
    num_classes = counts.shape[1]
    largest = counts.amax(1, keepdim=True).clamp_(min=1)
    first = counts.eq_(largest).mul_(num_classes - _classes(counts, num_classes)).amax(1, keepdim=True)
    return _one_hot(num_classes - first, num_classes)


def _median_votes(counts: Tensor) -> Tensor:
    """One-hot of the class at which the counts so far reach half of all; all zero where nothing counts."""
    so_far = counts
    for k in range(1, counts.shape[1]):
        so_far[:, k].add_(so_far[:, k - 1])
    total = so_far[:, -1:]
    before = so_far.lt_((total - total // 2).clamp_(min=1))
    votes = before.neg()
    votes[:, 0].add_(1)
    votes[:, 1:].add_(before[:, :-1])
    return votes


def _one_hot(index: Tensor, num_classes: int) -> Tensor:
    """Class index `(B, 1, *S)` to `(B, N, *S)`, in its type; all zero where it is not a class."""
    return index.repeat(1, num_classes, *[1] * (index.ndim - 2)).eq_(_classes(index, num_classes))


def _classes(like: Tensor, num_classes: int) -> Tensor:
    """The class indices along the second dimension, in the type of another tensor."""
    return torch.arange(num_classes, dtype=like.dtype, device=like.device).view(-1, *[1] * (like.ndim - 2))


def _class_index(target: Target, num_classes: int) -> Tensor:
    """Class index `(B, 1, *S)` in the smallest type that holds -1 to N, with -1 at ignored voxels."""
    index = target.labels.to(torch.int8 if num_classes <= torch.iinfo(torch.int8).max else torch.int16)
    if target.counted is not None:
        index = (index + 1).mul_(target.counted.to(index.dtype)).sub_(1)
    return index.unsqueeze(1)


def _class_maps(target: Target, num_classes: int, radius: int, padding: str) -> Tensor:
    """Where each class is, `(B, N, *S)`, padded: 0 and 1 in a small integer type, or probabilities."""
    if not target.is_soft:
        return _one_hot(_pad(_class_index(target, num_classes), radius, padding), num_classes)
    background, objects = target.labels[:, :1], target.labels[:, 1:]
    return torch.cat([_pad(background, radius, padding, outside=1.0), _pad(objects, radius, padding)], 1)


def _pad(tensor: Tensor, radius: int, padding: str, outside: float = 0) -> Tensor:
    """Pads the spatial dimensions of `(B, C, *S)` with what is at the border, or with `outside` for "background"."""
    if padding == "background":
        return F.pad(tensor, [radius] * 2 * (tensor.ndim - 2), value=outside)
    for dim in range(2, tensor.ndim):
        first, last = tensor.narrow(dim, 0, 1), tensor.narrow(dim, -1, 1)
        tensor = torch.cat([first] * radius + [tensor] + [last] * radius, dim)
    return tensor


def _shifted(tensor: Tensor, dim: int, size: int) -> list[Tensor]:
    """The `size` views of a padded tensor that lie under the places of a window moving along `dim`."""
    return [tensor.narrow(dim, i, tensor.shape[dim] - size + 1) for i in range(size)]


def _combine(padded: Tensor, size: int, operation: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Sum, maximum or minimum of each window, dimension by dimension."""
    for dim in range(2, padded.ndim):
        padded = functools.reduce(operation, _shifted(padded, dim, size))
    return padded
