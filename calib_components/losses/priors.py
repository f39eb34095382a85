"""What the labels around a voxel say about its class: the priors of NACL, and the soft labels of SVLS.

Priors depend on the labels alone, so classes are counted in small integers, one class and one axis at a time; only the
results that are fractions by nature become floating point.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from calib_components.losses.targets import Target, prepare_target

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
        ValueError: an option that is not one of the above, or a target that does not fit them.

    Example:
        >>> labels = torch.tensor([[[0, 0, 1], [0, 1, 1], [0, 1, 1]]])
        >>> neighbor_prior(labels, num_classes=2)[0, :, 1, 1]  # 4 and 5 of the 9 voxels
        tensor([0.4444, 0.5556])
    """
    check_prior(prior, kernel_size, sigma, padding)
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
        raise ValueError(f"kernel_size: expected an odd number, at least {smallest}, got {kernel_size}")
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
    weight = 1.0
    if prior == "mean":
        votes = _box_counts(target, num_classes, kernel_size, padding)
        weight = kernel_size ** (2 - votes.ndim)
    elif prior == "gaussian":
        votes = _svls_shares(target, num_classes, kernel_size, sigma, dtype)
    elif prior in ("max", "min"):
        votes = _one_hot(_extreme_class(target, num_classes, prior, kernel_size, padding), num_classes)
    else:
        counts = _box_counts(target, num_classes, kernel_size, padding)
        votes = _one_hot(_mode(counts) if prior == "mode" else _median(counts), num_classes)

    if prior in SHARES and target.counted is not None:
        total = _total(votes).unsqueeze(1).to(dtype)
        return votes, total.masked_fill_(total == 0, 1).reciprocal_()
    return votes, torch.full((), weight, dtype=dtype, device=votes.device)


def _box_counts(target: Target, num_classes: int, kernel_size: int, padding: str) -> Tensor:
    """How many voxels of the window each class has, `(B, N, *S)`; ignored voxels are not counted."""
    planes = _class_planes(target, num_classes, kernel_size // 2, padding)
    if not target.is_soft and kernel_size ** (planes[0].ndim - 1) > torch.iinfo(torch.uint8).max:
        planes = [plane.int() for plane in planes]
    return torch.stack([_combine(plane, kernel_size, torch.add) for plane in planes], 1)


def _svls_shares(target: Target, num_classes: int, kernel_size: int, sigma: float, dtype: torch.dtype) -> Tensor:
    """Each class filtered with the SVLS kernel, `(B, N, *S)`.

    The kernel is a Gaussian whose centre is replaced by the sum of all the others: the voxel itself weighs 0.5, and the
    voxels around it share the other half. What is around is gathered axis by axis, since a Gaussian is separable.
    """
    radius = kernel_size // 2
    taps = {i: math.exp(-(((i - radius) / sigma) ** 2) / 2) for i in range(kernel_size) if i != radius}
    shares = []
    for plane in _class_planes(target, num_classes, radius, "replicate"):
        centre = plane.to(dtype)
        around, weight_around = torch.zeros_like(centre), 0.0
        for dim in range(1, plane.ndim):
            line = _shifted(centre + around, dim, kernel_size)
            centre, around = (_shifted(part, dim, kernel_size)[radius] for part in (centre, around))
            for i, tap in taps.items():
                around.add_(line[i], alpha=tap)
            weight_around += sum(taps.values()) * (1 + weight_around)
        shares.append(around.mul_(0.5 / weight_around).add_(centre, alpha=0.5))
    return torch.stack(shares, 1)


def _extreme_class(target: Target, num_classes: int, prior: str, kernel_size: int, padding: str) -> Tensor:
    """Largest or smallest class index in the window; -1 or N where nothing counts."""
    padded = _pad(_class_map(target, num_classes), kernel_size // 2, padding)
    if prior == "max":
        return _combine(padded, kernel_size, torch.maximum)
    return _combine(padded.masked_fill(padded < 0, num_classes), kernel_size, torch.minimum)


def _mode(counts: Tensor) -> Tensor:
    """Class with the largest count, the first of equals; -1 where nothing counts."""
    largest = torch.zeros_like(counts[:, 0])
    winner = torch.full_like(largest, -1, dtype=torch.int16)
    for k, count in enumerate(counts.unbind(1)):
        winner.masked_fill_(count > largest, k)
        largest = torch.maximum(largest, count)
    return winner


def _median(counts: Tensor) -> Tensor:
    """Class at which the counts so far reach half of all; N where nothing counts."""
    total = _total(counts)
    half = (total - total // 2).clamp_(min=1)
    so_far = torch.zeros_like(half)
    winner = torch.zeros_like(half, dtype=torch.int16)
    for count in counts.unbind(1):
        so_far += count
        winner += so_far < half
    return winner


def _total(votes: Tensor) -> Tensor:
    """Sum over the classes, in the type of the votes."""
    return functools.reduce(torch.add, votes.unbind(1))


def _one_hot(winner: Tensor, num_classes: int) -> Tensor:
    """`(B, *S)` class index to `(B, N, *S)` uint8; all zero where it is not a class."""
    return torch.stack([winner == k for k in range(num_classes)], 1).to(torch.uint8)


def _class_map(target: Target, num_classes: int) -> Tensor:
    """Class index of each voxel in the smallest type, -1 at ignored voxels."""
    classes = target.labels.to(torch.int8 if num_classes <= torch.iinfo(torch.int8).max else torch.int16)
    return classes if target.counted is None else classes.where(target.counted, -1)


def _class_planes(target: Target, num_classes: int, radius: int, padding: str) -> list[Tensor]:
    """For each class, where it is: `(B, *S)`, padded; 0 and 1 in uint8, or probabilities."""
    if not target.is_soft:
        padded = _pad(_class_map(target, num_classes), radius, padding)
        return [(padded == k).to(torch.uint8) for k in range(num_classes)]
    return [_pad(target.labels[:, k], radius, padding, outside=float(k == 0)) for k in range(num_classes)]


def _pad(plane: Tensor, radius: int, padding: str, outside: float = 0) -> Tensor:
    """Pads the spatial dimensions of `(B, *S)` with what is at the border, or with `outside` for "background"."""
    if padding == "background":
        return F.pad(plane, [radius] * 2 * (plane.ndim - 1), value=outside)
    for dim in range(1, plane.ndim):
        first, last = plane.narrow(dim, 0, 1), plane.narrow(dim, -1, 1)
        plane = torch.cat([first] * radius + [plane] + [last] * radius, dim)
    return plane


def _shifted(plane: Tensor, dim: int, size: int) -> list[Tensor]:
    """The `size` views of `plane` that lie under the places of a window moving along `dim`."""
    return [plane.narrow(dim, i, plane.shape[dim] - size + 1) for i in range(size)]


def _combine(plane: Tensor, size: int, operation: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Sum, maximum or minimum of each window, dimension by dimension."""
    for dim in range(1, plane.ndim):
        plane = functools.reduce(operation, _shifted(plane, dim, size))
    return plane
