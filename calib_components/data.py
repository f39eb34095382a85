"""Slices of prepared volumes as items of a MONAI dataset.

A prepared case is a pair of uncompressed NIfTI files, so one slice is read from disk without its volume.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import Dataset
from monai.transforms import MapTransform
from nibabel import Nifti1Image

__all__ = ["CaseDataset", "LoadSliced", "SliceDataset", "list_slices"]


def list_slices(cases: Sequence[Mapping[str, Any]], image_size: Sequence[int]) -> list[dict[str, Any]]:
    """List every slice of the prepared cases; only the headers are read.

    Args:
        cases: items with the path of an ``image`` and a ``label``, as
            :func:`monai.data.load_decathlon_datalist` gives them from a prepared ``datalist.json``.
        image_size: expected number of rows and columns of a slice.

    Returns:
        One item for each slice along the third axis: the case's item and the index ``slice``.

    Raises:
        ValueError: when a case was prepared at another size.
    """
    slices: list[dict[str, Any]] = []
    for case in cases:
        rows, columns, depth = Nifti1Image.from_filename(case["image"]).shape[:3]
        if (rows, columns) != tuple(image_size):
            raise ValueError(
                f"{case['image']}: slices of {rows} x {columns}, but image_size is {list(image_size)}: "
                "prepare the data again or set image_size to what they were prepared at."
            )
        slices.extend({**case, "slice": index} for index in range(depth))
    return slices


def load_slice(path: str | os.PathLike, index: int) -> torch.Tensor:
    """Read one slice along the third axis of a NIfTI file.

    Args:
        path: an uncompressed file of shape ``(H, W, D)`` or ``(H, W, D, C)``.
        index: position along the third axis.

    Returns:
        ``(1, H, W)`` or ``(C, H, W)``: uint8 where that is what is stored, float32 otherwise.
    """
    values = np.asarray(Nifti1Image.from_filename(path).dataobj[:, :, index])
    if values.dtype != np.uint8:
        values = values.astype(np.float32)
    channel_first = values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)
    return torch.from_numpy(np.ascontiguousarray(channel_first))


class LoadSliced(MapTransform):
    """Replace the paths in an item of :func:`list_slices` by the slice they hold.

    Args:
        keys: entries of the item that are paths.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, torch.Tensor]:
        """Give ``{key: (C, H, W)}`` for each key, see :func:`load_slice`."""
        return {key: load_slice(data[key], data["slice"]) for key in self.key_iterator(data)}


class CaseDataset(Dataset):
    """Prepared cases, or cases as they come from a scanner, which are prepared first.

    The latter is what MONAI Label trains on: it puts its own list of images and labels in place of `data`. They are
    prepared into a temporary folder, which goes when the process ends.

    Args:
        data: items with the path of an ``image`` and a ``label``; a prepared one names its ``case`` as well.
        prepare: what turns an item that is not prepared into channel-first volumes on the network's grid.
        transform: applied to an item when it is asked for.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        prepare: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        transform: Callable | None = None,
    ) -> None:
        unprepared = sum("case" not in item for item in data)
        if unprepared:
            logging.getLogger(__name__).info("Preparing %d cases in %s.", unprepared, tempfile.gettempdir())
        super().__init__([item if "case" in item else _prepare(item, prepare) for item in data], transform)


class SliceDataset(CaseDataset):
    """The slices of such cases, see :func:`list_slices`.

    Args:
        data: as in `CaseDataset`.
        prepare: as in `CaseDataset`.
        image_size: expected number of rows and columns of a slice.
        transform: applied to an item when it is asked for.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        prepare: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        image_size: Sequence[int],
        transform: Callable | None = None,
    ) -> None:
        super().__init__(data, prepare, transform)
        self.data = list_slices(self.data, image_size)


def _prepare(item: Mapping[str, Any], prepare: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> dict[str, Any]:
    """Write a case in the form that :func:`load_slice` reads, and give its item."""
    volumes = prepare(item)
    for key in ("image", "label"):
        if not torch.isfinite(volumes[key]).all():
            raise ValueError(f"{item[key]}: has NaN or infinite values, or gets them when it is prepared")
    folder = Path(tempfile.mkdtemp(prefix="case-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for key, dtype in (("image", np.float32), ("label", np.uint8)):
        volume = volumes[key].numpy().astype(dtype)
        last = volume[0] if len(volume) == 1 else np.moveaxis(volume, 0, -1)
        Nifti1Image(last, volumes[key].affine.numpy()).to_filename(folder / f"{key}.nii")
    return {"case": str(folder), "image": str(folder / "image.nii"), "label": str(folder / "label.nii")}
