"""Where a network that was trained on crops looks in slices: around what it finds in the whole, or
a given point.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import ensure_tuple
from scipy.ndimage import center_of_mass, gaussian_filter

from calib_components.errors import InputError, check_number

# Pixels: standard deviation of the Gaussian that tells a heart from a few wrong voxels
SMOOTHING = 8.0
# Share of the foreground that the crop at the centre of mass must hold in addition
MIN_GAIN = 0.005
CROP = "crop"  # key of the metadata of logits
# Of what is found in whole slices, in the crop. Of 64 validation scans at home, one has less: 77 %
MIN_PERCENT = 95
NOTHING_FOUND = "Nothing was found in the whole slices, so their centre was segmented"
CUT = "{} % of what was found in the whole slices lies outside of the crop"
DIGITS = 6  # of what decides where a crop lies: an image that is turned has other rounding errors


class Crop(NamedTuple):
    """A part of each slice `(H, W)`: rows from `top` to `bottom`, columns from `left` to
    `right`.
    """

    top: int
    bottom: int
    left: int
    right: int
    percent_found: int = 100  # of what was found in the whole slices; 0: nothing, it is the centre

    def cut(self, volume: torch.Tensor) -> torch.Tensor:
        """Return a view of the crop of `(*, H, W, D)`."""
        return volume[..., self.top : self.bottom, self.left : self.right, :]

    def center(self, slices: Sequence[int]) -> list[float]:
        """Return the centre as shares of the sides of slices `(H, W)`, as precise as `crop_at`
        needs it.
        """
        ends = (self.top + self.bottom, self.left + self.right)
        return [round(end / 2 / side, 5) for end, side in zip(ends, slices, strict=True)]

    @property
    def doubt(self) -> str:
        """Why a person should look at the scan; empty without a reason."""
        if self.percent_found == 0:
            return NOTHING_FOUND
        if self.percent_found < MIN_PERCENT:
            return CUT.format(100 - self.percent_found)
        return ""


def crop_at(center: Sequence[float], size: Sequence[int], slices: Sequence[int]) -> Crop:
    """Return the crop around a point, moved inside at a border.

    Args:
        center: The point, as shares of the sides of a slice: (0.5, 0.5) is its centre.
        size: Rows and columns of the crop.
        slices: Rows and columns of a slice.
    """
    point = [share * side - 0.5 for share, side in zip(center, slices, strict=True)]
    return _crop_around(point, size, slices)


def find_crop(foreground: torch.Tensor, size: Sequence[int]) -> Crop | None:
    """Return the crop around most of the foreground; None without any.

    Its centre is the maximum of the smoothed map, which lies at one side of a heart. Where the
    heart fills the crop, this cuts the other side, and the crop around the centre of mass of the
    foreground in it replaces it if it holds more. Voxels far from the heart pull that centre.

    Args:
        foreground: Number of slices in which each pixel is foreground, `(H, W)`.
        size: Rows and columns of the crop.
    """
    if not foreground.any():
        return None
    counts = foreground.cpu().numpy().astype(float)
    density = gaussian_filter(counts, SMOOTHING, mode="constant").round(DIGITS)
    maximum = np.unravel_index(density.argmax(), density.shape)
    center: Sequence[float] = maximum
    for _ in range(2):
        row, column = (
            np.abs(np.arange(side) - middle) < length / 2
            for side, middle, length in zip(counts.shape, center, size, strict=True)
        )
        center = np.round(center_of_mass(counts * np.outer(row, column)), DIGITS)

    def share(crop: Crop) -> float:
        return float(crop.cut(foreground[..., None]).sum() / foreground.sum())

    crop, at_mass = (_crop_around(point, size, counts.shape) for point in (maximum, center))
    if share(at_mass) - share(crop) > MIN_GAIN:
        crop = at_mass
    return crop._replace(percent_found=max(1, round(100 * share(crop))))


def _crop_around(pixel: Sequence[float], size: Sequence[int], slices: Sequence[int]) -> Crop:
    """Return the crop around a pixel, moved inside at a border."""
    if any(map(operator.gt, size, slices)):
        raise InputError(f"crop_size: {list(size)} is larger than slices of {list(slices)}.")
    top, left = (
        min(max(round(middle - (length - 1) / 2), 0), side - length)
        for middle, length, side in zip(pixel, size, slices, strict=True)
    )
    return Crop(top, top + size[0], left, left + size[1])


def check_center(center: Any) -> None:
    """Raise `InputError` unless a centre is two shares of a slice's sides, or None."""
    if center is None:
        return
    shares = ensure_tuple(center)
    if len(shares) != 2:
        raise InputError(
            f"crop_center must be two shares of a slice's sides, such as .5,.5, got {center!r}."
        )
    for share in shares:
        check_number("crop_center", share, 0, 1)


def cut(crop: Crop | None, volume: torch.Tensor) -> torch.Tensor:
    """Return what the network saw of a volume: the crop, or all of it."""
    return volume if crop is None else crop.cut(volume)


def crop_of(logits: torch.Tensor) -> Crop | None:
    """Return the crop that a network saw, from the metadata of its logits `(N, H, W, D)`; None for
    whole slices.
    """
    values = logits.meta.get(CROP) if isinstance(logits, MetaTensor) else None
    return None if values is None else Crop(*values.tolist())
