"""Prepared cases: how they are stored, and their slices as items of a MONAI dataset.

A prepared case is a folder with two uncompressed NIfTI files on the network's grid: `image.nii`, int16 with a scale
factor, `(H, W, D)` or `(H, W, D, C)`, and `label.nii`, uint8 class indices, `(H, W, D)`; `source.json` records what
they were made from and what they hold. A slice along the third axis is read without reading the rest of the volume.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import CacheDataset, Dataset
from monai.data.utils import set_rnd
from monai.transforms import MapTransform
from monai.utils import ensure_tuple
from nibabel import Nifti1Image
from nibabel.spatialimages import SpatialImage
from numpy.typing import ArrayLike

from calib_components.data.facts import MOST_CLASSES
from calib_components.data.files import other_files
from calib_components.data.nifti import check_same_grid, open_nifti
from calib_components.errors import UNFINISHED, InputError, reading

__all__ = [
    "CaseDataset",
    "LoadSliced",
    "SliceDataset",
    "check_labels",
    "check_whole",
    "list_slices",
    "load_slice",
    "read_datalist",
    "write_case",
]

IMAGE, LABEL, SOURCE = "image.nii", "label.nii", "source.json"
CONTENT = "content"  # in source.json: SHA-256 of the two files
AGAIN = "prepare the data again"
REPLACED = ".replaced-"  # prefix of a case while another takes its place
Items = Sequence[Mapping[str, Any]]
Prepare = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def write_case(
    folder: str | os.PathLike,
    image: torch.Tensor,
    label: torch.Tensor,
    affine: ArrayLike,
    source: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> None:
    """Write a prepared case: a folder that appears complete or not at all.

    Args:
        folder: Folder to create; its parent exists.
        image: `(C, H, W, D)`, floating point; stored as int16 with one scale factor for all channels.
        label: Class indices, `(1, H, W, D)`.
        affine: `(4, 4)`, from voxel indices to millimetres, of image and label.
        source: What the case was made from, written to `source.json` with the SHA-256 of the two files.
        replace: Whether to replace a prepared case that is there.

    Raises:
        OSError: The folder exists.
        InputError: It holds something else than a prepared case, or cannot be written, as on a full disk; or a label
            is no class index below 256.
    """
    folder = Path(folder)
    if folder.exists() and not replace:
        raise FileExistsError(f"{folder}: expected no such folder yet, got one")
    if folder.exists() and (others := other_files(folder, {IMAGE, LABEL, SOURCE}) if folder.is_dir() else ["a file"]):
        raise InputError(f"{folder}: expected a prepared case or nothing, got {others[0]}; choose another folder")
    check_labels(label, MOST_CLASSES, folder)  # which are stored as bytes
    unfinished, old = (folder.with_name(f"{prefix}{folder.name}") for prefix in (UNFINISHED, REPLACED))
    content = hashlib.sha256()
    try:
        unfinished.mkdir()
        for name, volume, dtype in ((IMAGE, image, np.int16), (LABEL, label.to(torch.uint8), np.uint8)):
            channel_last = volume[0].numpy() if len(volume) == 1 else volume.movedim(0, -1).numpy()
            nifti = Nifti1Image(channel_last, np.asarray(affine))
            nifti.header.set_xyzt_units("mm")
            nifti.set_data_dtype(dtype)
            nifti.to_filename(unfinished / name)
            content.update((unfinished / name).read_bytes())
        if source is not None:
            (unfinished / SOURCE).write_text(json.dumps({**source, CONTENT: content.hexdigest()}, indent=1))
        if folder.exists():
            folder.rename(old)
        unfinished.rename(folder)
    except OSError as error:
        raise InputError(f"{folder}: expected a folder that can be written, got {error.strerror or error}") from error
    finally:
        for leftover in (unfinished, old):
            shutil.rmtree(leftover, ignore_errors=True)


def check_whole(file: str | os.PathLike) -> SpatialImage:
    """Check that a file of a prepared case is there and whole, by its header and its size alone.

    Args:
        file: Uncompressed NIfTI file.

    Returns:
        The volume, whose values have not been read.

    Raises:
        InputError: The file is missing, is no NIfTI file of a volume, or has not the size that its header demands; see
            also `open_nifti`.
    """
    if not Path(file).is_file():
        raise InputError(f"{file}: expected a prepared volume, got no such file; prepare the data again")
    image = open_nifti(Path(file))
    demanded = cast(Any, image.dataobj).offset + math.prod(image.shape) * image.get_data_dtype().itemsize
    if (size := Path(file).stat().st_size) != demanded:
        raise InputError(
            f"{file}: expected {demanded} bytes, as its header demands, got {size}; prepare the data again"
        )
    if len(image.shape) < 3 or not all(image.shape):
        raise InputError(f"{file}: expected a volume, got shape {image.shape}; prepare the data again")
    return image


def check_labels(label: torch.Tensor, num_classes: int, file: str | os.PathLike) -> None:
    """Check that a label holds the class indices of a network and no others.

    Args:
        label: Class indices, of any shape.
        num_classes: Number of classes of the network.
        file: The file that the label is from, for messages.

    Raises:
        InputError: A value is not a whole number from 0 to `num_classes - 1`.
    """
    values = label if label.is_floating_point() else label.long()  # 256, compared with bytes, would count as 0
    valid = (values >= 0) & (values < num_classes) & (values % 1 == 0)  # not where NaN
    if not valid.all():
        wrong = label[~valid][0].item()
        raise InputError(
            f"{file}: expected class indices from 0 to {num_classes - 1}, those of the network, got {wrong:g}"
        )


def read_datalist(
    file: str | os.PathLike,
    split: str,
    folder: str | os.PathLike,
    image_size: Sequence[int],
    in_channels: int,
    may_be_empty: bool = False,
) -> list[dict[str, Any]]:
    """Read the prepared cases of a split, and check by their headers that they are there, whole, and of one size.

    Args:
        file: `datalist.json`, as `prepare_data` writes it.
        split: `training`, `validation` or `testing`.
        folder: Folder that the paths in the file are relative to.
        image_size: Expected number of rows and columns of a slice.
        in_channels: Expected number of channels of an image.
        may_be_empty: Whether the split may have no cases.

    Returns:
        An item for each case: its name `case`, its `patient`, which is the case itself where the file names none, the
        absolute paths `image` and `label`, and what else the file states.

    Raises:
        InputError: The file is missing or malformed, the split has no cases or one of them twice, or a volume is
            missing, truncated, or of another size.
    """
    file, folder = Path(str(file)), Path(str(folder))  # MONAI reads the folder 2024 as a number
    if not file.exists():
        raise InputError(f"{file}: expected a list of prepared cases, got no such file; run prepare_data first")
    with reading(file, "a list of prepared cases"):
        content = json.loads(file.read_text())
    listed = content.get(split) if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise InputError(f"{file}: expected a list of prepared cases for {split}, got none; run prepare_data again")
    if not listed and not may_be_empty:
        raise InputError(
            f"{file}: expected at least one case for {split}, got none; prepare the data again with other --fractions"
        )
    _warn_of_overlap(content, split, file)
    items: dict[str, dict[str, Any]] = {}
    for number, item in enumerate(listed, 1):
        for key in ("case", "image", "label"):
            value = item.get(key) if isinstance(item, dict) else None
            if not (isinstance(value, str) and value.strip() and value.isprintable()):
                raise InputError(f"{file}: expected {key} of {split} case {number} to be text, got {value!r:.60}")
        if item["case"] in items:
            raise InputError(f"{file}: expected every case once, got {item['case']} twice for {split}")
        item = {**item, "image": str(folder / item["image"]), "label": str(folder / item["label"])}
        item["patient"] = _patient(item)
        _check_case(item, image_size, in_channels)
        items[item["case"]] = item
    return list(items.values())


def _warn_of_overlap(content: Mapping[str, Any], split: str, file: Path) -> None:
    """Warn of patients, or else cases, that the weights were trained on or chosen by."""
    listed = {name: items for name, items in content.items() if isinstance(items, list)}
    names = {name: {_patient(item) for item in items if isinstance(item, dict)} for name, items in listed.items()}
    for other, seen in {"training": "are trained on", "validation": "choose the epoch"}.items():
        if other == split:
            break
        if shared := sorted(names.get(other, set()) & names[split]):
            logging.getLogger(__name__).warning(
                "%s: %d of the patients for %s %s as well, such as %s.", file, len(shared), split, seen, shared[0]
            )


def _patient(item: Mapping[str, Any]) -> str:
    patient = "" if item.get("patient") is None else str(item["patient"]).strip()
    return patient or str(item.get("case"))


def _check_case(item: Mapping[str, Any], image_size: Sequence[int], in_channels: int) -> None:
    image, label = (check_whole(item[key]).shape for key in ("image", "label"))
    _check_size(item["image"], image, image_size)
    if (image[3:] or (1,)) != (in_channels,):
        raise InputError(f"{item['image']}: expected {in_channels} channel(s), got shape {image}; {AGAIN}")
    if label != image[:3]:
        raise InputError(f"{item['label']}: expected shape {image[:3]} as its image, got {label}; {AGAIN}")


def _check_size(file: str, shape: Sequence[int], image_size: Sequence[int]) -> None:
    if tuple(shape[:2]) != tuple(image_size):
        raise InputError(
            f"{file}: expected slices of the image_size {list(image_size)}, got {list(shape[:2])}; "
            "prepare the data again, or set image_size to the size they were prepared at"
        )


def list_slices(cases: Items, image_size: Sequence[int]) -> list[dict[str, Any]]:
    """List every slice of the prepared cases; only the headers are read.

    Args:
        cases: Items with the path of an `image` and a `label`, such as `read_datalist` returns.
        image_size: Expected number of rows and columns of a slice.

    Returns:
        One item for each slice along the third axis: the case's item and the index `slice`.

    Raises:
        InputError: A case was prepared at another size, or its image is missing or truncated.
    """
    slices: list[dict[str, Any]] = []
    for case in cases:
        shape = check_whole(case["image"]).shape
        _check_size(case["image"], shape, image_size)
        slices.extend({**case, "slice": index} for index in range(shape[2]))
    return slices


def load_slice(path: str | os.PathLike, index: int) -> torch.Tensor:
    """Read one slice along the third axis of a NIfTI file.

    Args:
        path: Uncompressed file of shape `(H, W, D)` or `(H, W, D, C)`.
        index: Position along the third axis.

    Returns:
        `(1, H, W)` or `(C, H, W)`: uint8 if stored as such, otherwise float32.

    Raises:
        InputError: The file has vanished or is truncated, or has no such slice.
    """
    with reading(path, "a whole prepared volume"):
        values = np.asarray(Nifti1Image.from_filename(path).dataobj[:, :, index])
    if values.dtype != np.uint8:
        values = values.astype(np.float32)
    channel_first = values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)
    return torch.from_numpy(np.ascontiguousarray(channel_first))


class LoadSliced(MapTransform):
    """Replace the paths in an item of `list_slices` by the slices that they hold.

    Args:
        keys: Entries of the item that are paths.
        num_classes: Number of classes of the network; None to leave the entry `label` unchecked.
    """

    def __init__(self, keys: KeysCollection, num_classes: int | None = None) -> None:
        super().__init__(keys)
        self.num_classes = num_classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, torch.Tensor]:
        """Return `{key: (C, H, W)}` for each key, see `load_slice`.

        Raises:
            InputError: A file cannot be read, or the label has a class index beyond the network's.
        """
        slices = {key: load_slice(data[key], data["slice"]) for key in self.key_iterator(data)}
        if self.num_classes is not None:
            check_labels(slices["label"], self.num_classes, data["label"])
        return slices


class CaseDataset(Dataset):
    """Prepared cases, or raw cases (as they come from the scanner), which are prepared first.

    MONAI Label trains on the latter: it replaces `data` with its own list of images and labels. They are prepared into
    a temporary folder, which is removed when the process ends.

    Args:
        data: Items with the path of an `image` and a `label`; a prepared one also has the name of its `case`.
        prepare: Turns a raw item into channel-first volumes on the network's grid, the label into class indices.
        transform: Applied to an item when it is requested.

    Raises:
        InputError: A raw case has values that are NaN or infinite, or labels of other voxels or with other values.
    """

    def __init__(self, data: Items, prepare: Prepare, transform: Callable | None = None) -> None:
        super().__init__(_prepared(data, prepare), transform)


class SliceDataset(CacheDataset):
    """The slices of such cases, see `list_slices`; as many as fit are kept in memory, as they are before augmentation.

    Args:
        data: As in `CaseDataset`.
        prepare: As in `CaseDataset`.
        image_size: Expected number of rows and columns of a slice.
        transform: Applied to an item when it is requested.
        cache: MiB of slices that are kept. Workers that are forked share them; others read all slices from their files.

    Raises:
        InputError: See `CaseDataset` and `list_slices`.
    """

    def __init__(
        self,
        data: Items,
        prepare: Prepare,
        image_size: Sequence[int],
        transform: Callable | None = None,
        cache: float = 0,
    ) -> None:
        slices = list_slices(_prepared(data, prepare), image_size)
        if not slices:
            raise InputError("train::dataset: expected at least one case, got none")
        size = sum(load_slice(slices[0][key], 0).nbytes for key in ("image", "label"))
        self._seed = torch.tensor(-1).share_memory_()  # -1: none; workers that stay see it change
        super().__init__(slices, transform, cache_num=int(cache * 2**20 / size), progress=sys.stderr.isatty())

    def seed_items(self, seed: int) -> None:
        """Let the randomness of each item follow from a seed and its index alone, whichever worker it is drawn in.

        Args:
            seed: Another one for each epoch.
        """
        self._seed.fill_(seed)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is kept: each tensor would reach a worker that is not forked as a file of its own."""
        return {**vars(self), "_cache": [], "cache_num": 0}

    def _transform(self, index: int) -> Any:
        if self._seed >= 0:
            seed = np.random.SeedSequence((int(self._seed), index % len(self))).generate_state(1).item()
            set_rnd(self.transform, seed)
        return super()._transform(index)


def _prepared(data: Items, prepare: Prepare) -> list[Mapping[str, Any]]:
    """Return the items, those of raw cases replaced by those of the cases prepared from them."""
    items = list(data)
    if raw := [index for index, item in enumerate(items) if "case" not in item]:
        folder = Path(tempfile.mkdtemp(prefix="cases-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        logging.getLogger(__name__).info("Preparing %d cases in %s.", len(raw), folder)
        for index in raw:
            check_same_grid(items[index]["label"], ensure_tuple(items[index]["image"])[0])
            items[index] = _write_raw(items[index], prepare(items[index]), folder / str(index))
    return items


def _write_raw(item: Mapping[str, Any], volumes: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Write the prepared volumes of a raw item, and return the item of the prepared case."""
    if invalid := int((~torch.isfinite(volumes["image"])).sum()):
        raise InputError(
            f"{item['image']}: expected finite values after preparation, got {invalid} that are NaN or infinite"
        )
    check_labels(volumes["label"], MOST_CLASSES, item["label"])
    write_case(folder, volumes["image"], volumes["label"], volumes["image"].affine)
    return {"case": str(folder), "image": str(folder / IMAGE), "label": str(folder / LABEL)}
