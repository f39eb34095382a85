"""Prepared cases: how they are stored, and their slices as items of a MONAI dataset.

A prepared case is a folder with two uncompressed NIfTI files on the network's grid: `image.nii`, int16 with a scale
factor, `(H, W, D)` or `(H, W, D, C)`, and `label.nii`, uint8 class indices, `(H, W, D)`. A slice along the third axis
is read without reading the rest of the volume.
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
from numpy.typing import ArrayLike

from calib_components.errors import InputError

__all__ = ["CaseDataset", "LoadSliced", "SliceDataset", "list_slices", "load_slice", "write_case"]

IMAGE, LABEL = "image.nii", "label.nii"
UNFINISHED = ".unfinished-"  # prefix of the folder of a case while it is being written


def write_case(folder: str | os.PathLike, image: torch.Tensor, label: torch.Tensor, affine: ArrayLike) -> None:
    """Write a prepared case: a folder that appears complete or not at all.

    Args:
        folder: Folder to create; its parent exists.
        image: `(C, H, W, D)`, floating point; stored as int16 with one scale factor for all channels.
        label: Class indices, `(1, H, W, D)`.
        affine: `(4, 4)`, from voxel indices to millimetres, of image and label.

    Raises:
        OSError: The folder exists or cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder}: expected no such folder yet, got one")
    unfinished = folder.with_name(f"{UNFINISHED}{folder.name}")
    unfinished.mkdir()
    try:
        for name, volume, dtype in ((IMAGE, image, np.int16), (LABEL, label.to(torch.uint8), np.uint8)):
            channel_last = volume[0].numpy() if len(volume) == 1 else volume.movedim(0, -1).numpy()
            nifti = Nifti1Image(channel_last, np.asarray(affine))
            nifti.header.set_xyzt_units("mm")
            nifti.set_data_dtype(dtype)
            nifti.to_filename(unfinished / name)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def list_slices(cases: Sequence[Mapping[str, Any]], image_size: Sequence[int]) -> list[dict[str, Any]]:
    """List every slice of the prepared cases; only the headers are read.

    Args:
        cases: Items with the path of an `image` and a `label`, such as
            `monai.data.load_decathlon_datalist` reads from a prepared `datalist.json`.
        image_size: Expected number of rows and columns of a slice.

    Returns:
        One item for each slice along the third axis: the case's item and the index `slice`.

    Raises:
        InputError: A case was prepared at another size.
    """
    slices: list[dict[str, Any]] = []
    for case in cases:
        rows, columns, depth = Nifti1Image.from_filename(case["image"]).shape[:3]
        if (rows, columns) != tuple(image_size):
            raise InputError(
                f"{case['image']}: expected slices of the image_size {list(image_size)}, got {[rows, columns]}; "
                "prepare the data again, or set image_size to the size they were prepared at"
            )
        slices.extend({**case, "slice": index} for index in range(depth))
    return slices


def load_slice(path: str | os.PathLike, index: int) -> torch.Tensor:
    """Read one slice along the third axis of a NIfTI file.

    Args:
        path: Uncompressed file of shape `(H, W, D)` or `(H, W, D, C)`.
        index: Position along the third axis.

    Returns:
        `(1, H, W)` or `(C, H, W)`: uint8 if stored as such, otherwise float32.
    """
    values = np.asarray(Nifti1Image.from_filename(path).dataobj[:, :, index])
    if values.dtype != np.uint8:
        values = values.astype(np.float32)
    channel_first = values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)
    return torch.from_numpy(np.ascontiguousarray(channel_first))


class LoadSliced(MapTransform):
    """Replace the paths in an item of `list_slices` by the slices that they hold.

    Args:
        keys: Entries of the item that are paths.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, torch.Tensor]:
        """Return `{key: (C, H, W)}` for each key, see `load_slice`."""
        return {key: load_slice(data[key], data["slice"]) for key in self.key_iterator(data)}


class CaseDataset(Dataset):
    """Prepared cases, or raw cases (as they come from the scanner), which are prepared first.

    MONAI Label trains on the latter: it replaces `data` with its own list of images and labels. They are prepared into
    a temporary folder, which is removed when the process ends.

    Args:
        data: Items with the path of an `image` and a `label`; a prepared one also has the name of its `case`.
        prepare: Turns a raw item into channel-first volumes on the network's grid, the label into class indices.
        transform: Applied to an item when it is requested.

    Raises:
        InputError: A raw case has values that are NaN or infinite.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        prepare: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        transform: Callable | None = None,
    ) -> None:
        items = list(data)
        if raw := [index for index, item in enumerate(items) if "case" not in item]:
            folder = Path(tempfile.mkdtemp(prefix="cases-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            logging.getLogger(__name__).info("Preparing %d cases in %s.", len(raw), folder)
            for index in raw:
                items[index] = _write_raw(items[index], prepare(items[index]), folder / str(index))
        super().__init__(items, transform)


class SliceDataset(CaseDataset):
    """The slices of such cases, see `list_slices`.

    Args:
        data: As in `CaseDataset`.
        prepare: As in `CaseDataset`.
        image_size: Expected number of rows and columns of a slice.
        transform: Applied to an item when it is requested.

    Raises:
        InputError: See `CaseDataset` and `list_slices`.
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


def _write_raw(item: Mapping[str, Any], volumes: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Write the prepared volumes of a raw item, and return the item of the prepared case."""
    for key in ("image", "label"):
        if invalid := int((~torch.isfinite(volumes[key])).sum()):
            raise InputError(
                f"{item[key]}: expected finite values after preparation, got {invalid} that are NaN or infinite"
            )
    write_case(folder, volumes["image"], volumes["label"], volumes["image"].affine)
    return {"case": str(folder), "image": str(folder / IMAGE), "label": str(folder / LABEL)}
