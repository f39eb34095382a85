"""Slices of prepared volumes as items of a MONAI dataset.

A prepared case is a pair of uncompressed NIfTI files, so one slice is read from disk without its volume.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from nibabel import Nifti1Image

__all__ = ["LoadSliced", "list_slices"]


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

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, torch.Tensor]:
        """Give ``{key: (C, H, W)}`` for each key, see :func:`load_slice`."""
        return {key: load_slice(data[key], data["slice"]) for key in self.key_iterator(data)}
