"""Prepared cases: how they are stored, and their slices or whole volumes as items of a MONAI
dataset.

A prepared case is a folder with two uncompressed NIfTI files on the network's grid: `image.nii`,
int16 with a scale factor, `(H, W, D)` or `(H, W, D, C)`, and `label.nii`, uint8 class indices, `(H,
W, D)`. `source.json` records what they were made from and what they hold. A slice along the third
axis is read without reading the rest of the volume.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import CacheDataset, Dataset
from monai.data.utils import set_rnd
from monai.transforms import MapTransform
from monai.utils import ensure_tuple
from nibabel import Nifti1Image
from numpy.typing import ArrayLike

from calib_components.errors import InputError, check_choice, reading, writing_folder
from calib_workflows.data.nifti import channels_last, open_nifti, open_together
from calib_workflows.data.overlap import find_shared
from calib_workflows.data.transforms import check_finite, check_indices, check_labels

IMAGE, LABEL, SOURCE = "image.nii", "label.nii", "source.json"
CONTENT = "content"  # in source.json: SHA-256 of the two files
SPLITS = ("training", "validation", "testing")
Items = Sequence[Mapping[str, Any]]
Prepare = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def write_case(
    folder: str | os.PathLike,
    image: torch.Tensor,
    label: torch.Tensor,
    affine: ArrayLike,
    source: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write a prepared case. The folder appears when it is complete, and replaces a case of that
    name.

    Args:
        folder: Folder to create; its parent exists.
        image: `(C, H, W, D)`, floating point; stored as int16 with one scale factor for all
            channels.
        label: Class indices, `(1, H, W, D)`.
        affine: `(4, 4)`, from voxel indices to millimetres, of image and label.
        source: What the case was made from, written to `source.json` with the SHA-256 of the two
            files.

    Raises:
        InputError: The folder cannot be written, a value of the image is not finite, or a label is
            no class index.
    """
    check_finite(image)  # one scale factor could not hold NaN
    check_labels(label, range(256), folder)  # stored as bytes
    content = hashlib.sha256()
    with writing_folder(folder) as unfinished:
        for name, volume, dtype in (
            (IMAGE, image, np.int16),
            (LABEL, label.to(torch.uint8), np.uint8),
        ):
            nifti = Nifti1Image(channels_last(volume), np.asarray(affine))
            nifti.header.set_xyzt_units("mm")
            nifti.set_data_dtype(dtype)
            nifti.to_filename(unfinished / name)
            content.update((unfinished / name).read_bytes())
        record = {**source, CONTENT: content.hexdigest()}
        (unfinished / SOURCE).write_text(json.dumps(record, indent=1))


def read_datalist(
    file: str | os.PathLike,
    split: str,
    folder: str | os.PathLike,
    image_size: Sequence[int] | None,
    in_channels: int,
    may_be_empty: bool = False,
    refuse_trained: bool = False,
) -> list[dict[str, Any]]:
    """Read the prepared cases of a split, and check by their headers that they are complete and of
    one size.

    A warning says which cases for validation or testing share a patient or a volume with those that
    the network is trained on, or chosen by.

    Args:
        file: `datalist.json`, as `prepare_data` writes it.
        split: `training`, `validation` or `testing`.
        folder: Folder that the paths in the file are relative to.
        image_size: Number of rows and columns of every slice; None if each case has its own.
        in_channels: Number of channels of every image.
        may_be_empty: Whether the split may have no cases.
        refuse_trained: Whether cases that the network is also trained on are an error, not a
            warning.

    Returns:
        An item for each case: its name `case`, its `patient` (the case itself where the file names
        none), the absolute paths `image` and `label`, and what else the file states.

    Raises:
        InputError: The file is missing or malformed, the split has no cases or one of them twice,
            or a volume is missing, truncated, or of another size.
    """
    check_choice("split", split, SPLITS)
    file, folder = Path(file), Path(folder)
    listed = read_lists(file, folder)
    if not listed[split] and not may_be_empty:
        raise InputError(
            f"{file}: no case for {split}. Run prepare_data with other --fractions or a --split."
        )
    _check_apart(listed, split, file, refuse_trained)
    names = [item["case"] for item in listed[split]]
    for item in listed[split]:
        if names.count(item["case"]) > 1:
            raise InputError(f"{file}: case {item['case']} occurs twice for {split}.")
        image = item["image"]
        shape = open_together([image, item["label"]])[0].shape
        if len(shape) < 3 or (*shape, 1)[3] != in_channels:
            raise InputError(
                f"{image}: shape {shape} is not that of a volume of {in_channels} channel(s)."
            )
        if image_size is not None and [*shape[:2]] != [*image_size]:
            raise InputError(
                f"{image}: shape {shape} is not that of slices of the image_size"
                f" {[*image_size]}, which must be the size that the cases were prepared at."
            )
    return listed[split]


def read_lists(file: Path, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the items of each split, see `read_datalist`, without looking at their files."""
    with reading(file, "the list of prepared cases, as prepare_data writes it"):
        content = json.loads(file.read_bytes())  # with or without a byte order mark
        return {
            name: [_with_paths(item, folder) for item in content.get(name, [])] for name in SPLITS
        }


def _with_paths(item: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    patient = str(item.get("patient") or item["case"]).strip()
    return {
        **item,
        "case": str(item["case"]),
        "patient": patient,
        "image": str(folder / item["image"]),
        "label": str(folder / item["label"]),
    }


def _check_apart(listed: Mapping[str, Items], split: str, file: Path, refuse_trained: bool) -> None:
    """Warn of cases that decide on the weights as well, or refuse those that are trained on."""
    for other, role in (("training", "are trained on"), ("validation", "choose the epoch")):
        if other == split:
            return
        shared = find_shared(listed[split], listed[other])
        if not shared:
            continue
        message = f"{file}: {len(shared)} of the cases for {split} {role} as well: {shared[0]}."
        if refuse_trained and other == "training":
            raise InputError(f"{message} Leave them out of one of the two.")
        logging.getLogger(__name__).warning("%s", message)


def load_sample(path: str | os.PathLike, index: int | None = None) -> torch.Tensor:
    """Read a prepared image or label: uint8 if stored as such, otherwise float32.

    Args:
        path: File of the volume.
        index: Number of a slice; None for the whole volume.

    Returns:
        The slice `(C, H, W)` or the volume `(C, H, W, D)`.
    """
    with reading(path):
        stored = Nifti1Image.from_filename(path).dataobj
        values = np.asarray(stored if index is None else stored[:, :, index])
    if values.dtype != np.uint8:
        values = values.astype(np.float32)
    has_channels = len(stored.shape) == 4
    channel_first = np.moveaxis(values, -1, 0) if has_channels else values[None]
    return torch.from_numpy(np.ascontiguousarray(channel_first))


class LoadSliced(MapTransform):
    """Replace the paths in an item of `SliceDataset` by the slices or volumes that they hold,
    `{key: (C, *S)}`.

    Args:
        keys: Entries of the item that are paths.
        num_classes: Number of classes of the network; None to leave the entry `label` unchecked.

    Raises:
        InputError: When called: a file cannot be read, or the label has a class index beyond the
            network's.
    """

    def __init__(self, keys: KeysCollection, num_classes: int | None = None) -> None:
        super().__init__(keys)
        self.num_classes = num_classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, torch.Tensor]:
        samples = {
            key: load_sample(data[key], data.get("slice")) for key in self.key_iterator(data)
        }
        if self.num_classes is not None:
            check_indices(samples["label"], self.num_classes, data["label"])
        return samples


class CaseDataset(Dataset):
    """Prepared cases, or raw cases (as they come from the scanner), which are prepared first.

    MONAI Label trains on the latter: it replaces `data` with its own list of images and labels.
    They are prepared into a temporary folder, which is removed when the process ends.

    Args:
        data: Items with the path of an `image` and a `label`; a prepared one also has the name of
            its `case`.
        prepare: Turns a raw item into channel-first volumes on the network's grid, the label into
            class indices.
        transform: Applied to an item when it is requested.

    Raises:
        InputError: A raw case has values that are NaN or infinite, or labels of other voxels or
            with other values.
    """

    def __init__(self, data: Items, prepare: Prepare, transform: Callable | None = None) -> None:
        super().__init__(_prepared(data, prepare), transform)


class SliceDataset(CacheDataset):
    """The slices of prepared or raw cases, or whole volumes; as many as fit are kept, as they are
    before augmentation.

    Args:
        data: As in `CaseDataset`.
        prepare: As in `CaseDataset`.
        transform: Applied to an item when it is requested.
        cache: MiB of items that are kept in memory. Forked workers share them; others read all from
            the files.
        spatial_dims: 2 for items that are slices, 3 for whole volumes.

    Raises:
        InputError: There is no case; see also `CaseDataset`.
    """

    def __init__(
        self,
        data: Items,
        prepare: Prepare,
        transform: Callable | None = None,
        cache: float = 0,
        spatial_dims: int = 2,
    ) -> None:
        samples: list[dict[str, Any]] = []
        for case in _prepared(data, prepare):
            slices = range(open_nifti(case["image"]).shape[2])
            indices = slices if spatial_dims == 2 else [None]
            samples.extend({**case, "slice": index} for index in indices)
        if not samples:
            raise InputError("train::dataset: there is no case to train on.")
        size = sum(
            load_sample(samples[0][key], samples[0]["slice"]).nbytes for key in ("image", "label")
        )
        self._seed = torch.tensor(-1).share_memory_()  # -1: none; workers that stay see it change
        super().__init__(
            samples, transform, cache_num=int(cache * 2**20 / size), progress=sys.stderr.isatty()
        )

    def seed_items(self, seed: int) -> None:
        """Let the randomness of each item follow from a seed, another in each epoch, and its index
        alone.
        """
        self._seed.fill_(seed)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the cache out: each tensor would reach a worker that is not forked as a file of its
        own.
        """
        return {**vars(self), "_cache": [], "cache_num": 0}

    def _transform(self, index: int) -> Any:
        if self._seed >= 0:
            seed = (
                np.random.SeedSequence((int(self._seed), index % len(self)))
                .generate_state(1)
                .item()
            )
            set_rnd(self.transform, seed)
        return super()._transform(index)


def _prepared(data: Items, prepare: Prepare) -> list[Mapping[str, Any]]:
    """Return the items of prepared cases: the given ones, or those of raw cases once prepared."""
    if all("case" in item for item in data):
        return [*data]
    folder = Path(tempfile.mkdtemp(prefix="cases-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    logging.getLogger(__name__).info("Preparing %d cases in %s.", len(data), folder)
    items: list[Mapping[str, Any]] = []
    for number, item in enumerate(data):
        open_together([*ensure_tuple(item["image"]), item["label"]])
        case, volumes = folder / str(number), prepare(item)
        image, label = volumes["image"], volumes["label"]
        write_case(case, image, label, image.affine)
        files = {"image": str(case / IMAGE), "label": str(case / LABEL)}
        items.append({"case": str(case), **files})
    return items
