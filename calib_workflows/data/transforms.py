"""Transforms of volumes: reading them with checks, and bringing their slices to one position in the
array.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    LoadImaged,
    MapLabelValue,
    MapTransform,
    Orientation,
    Spacingd,
)
from monai.utils import ensure_tuple
from nibabel.orientations import aff2axcodes

from calib_components.errors import InputError, root_cause
from calib_workflows.data.facts import IGNORED
from calib_workflows.data.nifti import NiftiReader

# How far off the trained pixel sizes an image may be before there is a warning
PIXEL_SIZE_FACTOR = 3
SAME_SPACING = 1e-3  # relative difference of spacings that are equal up to rounding
SLAB = 16  # slices whose values are changed at once
MOST_LABELS = 16  # different whole numbers in a label map; an image has more
# From a whole number that a label with a scale factor is; an automatic one of bytes rounds by 4 /
# 255 / 2
WHOLE = 1e-2
PADDING = -1500  # Hounsfield units below any tissue and air, whose noise is less than 500
FAT = -40  # Hounsfield units: fat and air lie below
# Hounsfield units, within the ends that scans are clipped to: [-125, 275] or [-160, 240]
SOFT_TISSUE = (-125, 240)
MIN_DARK, MIN_SOFT = 0.01, 0.1  # shares of the voxels of a scan: air and fat, soft tissue
Image = TypeVar("Image", bound=torch.Tensor)


def file_name(image: Any) -> str:
    """Return the file that an image was loaded from, for messages; `image` if it is not known."""
    meta = image.meta if isinstance(image, MetaTensor) else {}
    return str(meta.get("filename_or_obj", "image"))


def slice_axis(spacing: Sequence[float], shape: Sequence[int]) -> int:
    """Return the axis along which the slices of a volume lie, from the spacing and the number of
    voxels of each axis.

    It is the axis of the largest spacing; of several, the one with the fewest voxels; of several of
    those, the last. If a single axis has one voxel, it is that axis, whatever the header says.
    """
    single = [axis for axis, length in enumerate(shape) if length == 1]
    if len(single) == 1:
        return single[0]
    widest = [
        axis for axis, size in enumerate(spacing) if size >= max(spacing) * (1 - SAME_SPACING)
    ]
    return min(widest, key=lambda axis: (shape[axis], -axis))


class SlicesLastd(MapTransform):
    """Move the axis along which the slices of a volume lie to the last position.

    The other two axes keep their order, and nothing is flipped, so that a volume gives the same
    array wherever its file has the slices. The affine follows, MONAI's record has an `Orientation`,
    and the metadata the `slice_axis`.

    Args:
        keys: Volumes `(C, H, W, D)` on one grid, each a `MetaTensor`. The first one decides on the
            axis.
        slice_axis: The axis, 0 to 2; None to find it with `slice_axis`.
        allow_missing_keys: Skip keys that the item lacks.
    """

    def __init__(
        self, keys: KeysCollection, slice_axis: int | None = None, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.slice_axis = slice_axis

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with each volume as `(C, H, W, D)`, contiguous in memory, D counting the
        slices.

        Warn if the axis that was found is not that of the fewest voxels: a header may have lost its
        spacing.
        """
        item = dict(data)
        axis = self.slice_axis
        for key in self.key_iterator(item):
            affine = np.asarray(item[key].affine)
            if axis is None:
                axis = _find_axis(item[key])
            codes = aff2axcodes(affine)
            order = [*codes[:axis], *codes[axis + 1 :], codes[axis]]
            item[key] = Orientation("".join(order), labels=None)(item[key]).contiguous()
            item[key].meta["slice_axis"] = axis
        return item


def _find_axis(volume: MetaTensor) -> int:
    shape = tuple(volume.shape[1:])
    axis = slice_axis(volume.pixdim.tolist(), shape)
    if shape[axis] > min(shape):
        text = (
            "%s: slices are taken along axis %d of the file, which has the largest spacing, though"
            " another axis of %s has fewer voxels. Set --slice_axis if that is wrong."
        )
        logging.getLogger(__name__).warning(text, file_name(volume), axis, shape)
    return axis


class LoadVolumed(LoadImaged):
    """Load the NIfTI files of images as `(C, H, W, D)`, float32; those of several channels are
    stacked in their order.

    Args:
        keys: Entries of the item that are a path, or the paths of all channels. A label, which may
            well have one value everywhere, is not for this loader.
        nan_to_num: Whether NaN is read as 0.

    Raises:
        InputError: When called: a file cannot be read, see `NiftiReader`; has values that are not
            finite in float32, or is no image, see `check_image`.
    """

    def __init__(self, keys: KeysCollection, nan_to_num: bool = False) -> None:
        super().__init__(keys, ensure_channel_first=True)
        self.register(NiftiReader(nan_to_num=nan_to_num))  # the last one comes first

    def __call__(self, data: Mapping[Hashable, Any], reader: Any = None) -> dict[Hashable, Any]:
        item = super().__call__(data, reader)
        for key in self.key_iterator(item):
            files = ensure_tuple(data[key])
            for index, channel in enumerate(item[key].as_tensor()):
                file = str(files[index if len(files) > 1 else 0])
                check_image(MetaTensor(channel[None], meta={"filename_or_obj": file}))
        return item


def looks_like_labels(channel: torch.Tensor) -> bool:
    """Return whether a volume `(H, W, D)` holds a few whole numbers alone."""
    for part in (channel[::8, ::8, ::8], channel):  # sorting all is slow
        values = part.unique()
        if len(values) > MOST_LABELS or not torch.equal(whole(values), values.round()):
            return False
    return True


def whole(values: torch.Tensor) -> torch.Tensor:
    """Return the values of a label rounded, if all are whole numbers up to the rounding of a scale
    factor.
    """
    rounded = values.round()
    return rounded if values.numel() and (values - rounded).abs_().max() <= WHOLE else values


class EachVolumed(MapTransform):
    """Base of transforms that change, or check, one volume after the other."""

    @abstractmethod
    def change(self, volume: torch.Tensor) -> torch.Tensor:
        """Return what takes the place of a volume."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.change(item[key])
        return item


class ClassIndicesd(EachVolumed):
    """Turn the values of label files into class indices.

    Args:
        keys: The labels.
        label_codes: Value of each class, by index.
        ignored_code: Value of voxels that do not count, which become `IGNORED`; None if all count.

    Raises:
        InputError: When called: a label has another value.
    """

    def __init__(
        self, keys: KeysCollection, label_codes: Sequence[int], ignored_code: int | None = None
    ) -> None:
        super().__init__(keys)
        indices = [*range(len(label_codes))]
        self.label_codes = list(label_codes)
        if ignored_code is not None:
            self.label_codes.append(ignored_code)
            indices.append(IGNORED)
        self.map = MapLabelValue(self.label_codes, indices)

    def change(self, volume: torch.Tensor) -> torch.Tensor:
        label = whole(volume)
        check_labels(label, self.label_codes, file_name(label))
        return self.map(label)


def is_counted(label: torch.Tensor) -> torch.Tensor:
    """Return the mask of the voxels of a prepared label that count."""
    return label != IGNORED


def check_indices(label: torch.Tensor, num_classes: int, file: object) -> None:
    """Raise an `InputError` that names the file if a prepared label has other values than class
    indices and `IGNORED`.
    """
    check_labels(label.where(is_counted(label), 0), range(num_classes), file)


def check_labels(label: torch.Tensor, codes: Sequence[int], file: object) -> None:
    """Raise an `InputError` that names the file if a label has other values than the codes of the
    classes.
    """
    if not torch.isin(label, torch.tensor(codes, dtype=label.dtype, device=label.device)).all():
        unknown = ", ".join(
            f"{value:.9g}" for value in np.setdiff1d(label.cpu().numpy(), codes)[:5]
        )
        known = f"the class indices 0 to {codes[-1]}" if isinstance(codes, range) else list(codes)
        raise InputError(f"{file}: label values {unknown} are none of {known}.")


def check_finite(image: Image) -> Image:
    """Return the image, or raise an `InputError` that names its file if a value is NaN or
    infinite.
    """
    # Without a copy of the image
    if image.numel() and not torch.isfinite(torch.stack(torch.aminmax(image))).all():
        remedy = ""
        if image.isnan().any():
            remedy = " Store 0 if NaN stands for it; inference takes --nan_to_num true."
        count = int((~torch.isfinite(image)).sum())
        raise InputError(f"{file_name(image)}: {count} values are NaN or infinite.{remedy}")
    return image


def check_image(image: Image) -> Image:
    """Return the image `(C, *S)`, or raise an `InputError` that names its file.

    It must be finite, have more than one value in each channel, and not look like a label map.
    """
    for index, channel in enumerate(check_finite(image)):
        where = f"{file_name(image)}: channel {index}"
        if channel.numel() == 0:
            raise InputError(f"{where} has no voxel.")
        darkest, brightest = channel.aminmax()
        if darkest == brightest:
            raise InputError(f"{where} has no contrast: all values are {darkest:g}.")
        if channel.ndim == 3 and looks_like_labels(channel):
            raise InputError(f"{where} looks like a label map. Move it to another folder.")
    return image


class CheckHounsfieldd(EachVolumed):
    """Check that CT has values of air or fat and of soft tissue in Hounsfield units.

    What lies below any tissue and a background that was set to 0 do not count.

    Args:
        keys: Volumes `(C, H, W, D)` as they were read.

    Raises:
        InputError: When called: the values of a channel are not Hounsfield units.
    """

    def change(self, volume: torch.Tensor) -> torch.Tensor:
        for channel in volume.as_subclass(torch.Tensor):
            # Slice by slice: the masks of a long scan take more memory than the scan
            counts = torch.stack([*map(_count_tissues, channel.unbind(-1))]).sum(0)
            dark_share, soft_share = counts[1:] / counts[0]
            if not (dark_share > MIN_DARK and soft_share > MIN_SOFT):  # or nothing is seen
                raise InputError(
                    f"{file_name(volume)}: values from {channel.min():.6g} to"
                    f" {channel.max():.6g} are not Hounsfield units of CT:"
                    f" {dark_share:.1%} are below {FAT} (air, fat), {soft_share:.1%} in"
                    f" {SOFT_TISSUE} (soft tissue). Apply the rescale slope and intercept of"
                    " the scan; to segment it as it is, pass --ignore_intensity true to inference."
                )
        return volume


def _count_tissues(values: torch.Tensor) -> torch.Tensor:
    """Return the numbers of voxels that count, of those of air and fat, and of soft tissue."""
    seen = (values >= PADDING) & (values != 0)
    dark = seen & (values < FAT)
    soft = seen & (values > SOFT_TISSUE[0]) & (values < SOFT_TISSUE[1])
    return torch.stack([seen.sum(), dark.sum(), soft.sum()])


class InSlabsd(EachVolumed):
    """Change the values of volumes in place, a slab of slices at a time.

    MONAI's transforms of intensities hold several copies of a volume, which is much for a scan of
    the whole body.

    Args:
        keys: Volumes `(C, H, W, D)`, floating point, which are overwritten.
        transform: Gives each voxel a value that follows from its own alone, such as
            `ScaleIntensityRange`.
    """

    def __init__(self, keys: KeysCollection, transform: Callable) -> None:
        super().__init__(keys)
        self.transform = transform

    def change(self, volume: torch.Tensor) -> torch.Tensor:
        for slab in volume.as_subclass(torch.Tensor).split(SLAB, dim=-1):
            slab.copy_(self.transform(slab))
        return volume


class ResampledVolumesd(Spacingd):
    """Resample volumes to a size of voxels by MONAI's `Spacingd`, which fails on further entries
    such as `image_path`.

    Args:
        keys: Volumes `(C, H, W, D)`, each a `MetaTensor`.
        spacing: Size of voxels along each axis, in millimetres.
        mode: Interpolation of each key, `bilinear` or `nearest`.
        allow_missing_keys: Skip keys that the item lacks.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spacing: Sequence[float],
        mode: Sequence[str],
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, spacing, mode=mode, allow_missing_keys=allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> Any:
        volumes = {key: data[key] for key in self.keys if key in data}
        return {**data, **super().__call__(volumes, lazy)}


def has_other_pixels(sizes: Sequence[float], trained_on: Sequence[float]) -> bool:
    """Return whether pixels, from the smallest size to the largest, are far smaller or larger than
    those trained on.
    """
    return (
        sizes[0] * PIXEL_SIZE_FACTOR < trained_on[0] or sizes[1] > trained_on[1] * PIXEL_SIZE_FACTOR
    )


class CheckVolumed(EachVolumed):
    """Check a preprocessed volume, and warn if its pixels are unlike those that the network was
    trained on.

    Args:
        keys: Volumes `(C, H, W, D)` on the network's grid.
        pixel_size: Smallest and largest in-plane size of a pixel of the training images on this
            grid, in millimetres; None if it is not known.
        in_channels: Number of channels that the network takes; None for any. MONAI Label gives
            images that no other check has seen.

    Raises:
        InputError: When called: the volume has other channels, or see `check_image`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        pixel_size: Sequence[float] | None = None,
        in_channels: int | None = None,
    ) -> None:
        super().__init__(keys)
        self.pixel_size, self.in_channels = pixel_size, in_channels

    def change(self, volume: MetaTensor) -> MetaTensor:  # type: ignore[override]
        image = check_image(volume)
        if self.in_channels not in (None, len(image)):
            raise InputError(
                f"{file_name(image)} has {len(image)} channels, the network takes"
                f" {self.in_channels}."
            )
        if self.pixel_size is not None:
            sizes = volume.pixdim[:2].tolist()
            if has_other_pixels(sorted(sizes), self.pixel_size):
                logging.getLogger(__name__).warning(
                    "%s: pixels of %.3g x %.3g mm on the network's grid, which was trained on"
                    " %.3g to %.3g mm. Do not rely on the result.",
                    file_name(image),
                    *sizes,
                    *self.pixel_size,
                )
        return image


class NamedCompose(Compose):
    """MONAI's `Compose` for an item with an `image`: an `InputError` names its file if a transform
    refuses it.

    A transform does so by a `ValueError` or `RuntimeError`; other errors stay as they are.
    """

    def __call__(self, input_: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        try:
            return super().__call__(input_, *args, **kwargs)
        except Exception as error:
            cause = root_cause(error)
            if isinstance(cause, InputError):
                raise cause from None
            if not isinstance(cause, RuntimeError | ValueError):
                raise
            reason = " ".join(str(cause).split())
            raise InputError(
                f"{file_name(input_.get('image'))}: image cannot be preprocessed: {reason}"
            ) from None
