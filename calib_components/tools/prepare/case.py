"""One case of a data set: what it consists of, what is wrong with it, and its preparation."""

from __future__ import annotations

import glob
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, MapLabelValue

from calib_components.data.cases import CONTENT, IMAGE, LABEL, SOURCE, check_whole
from calib_components.data.facts import FACTS, Facts
from calib_components.data.nifti import SMALLEST_SLICE, NiftiReader
from calib_components.data.transforms import SlicesLastd, check_contrast, check_finite, check_label_codes
from calib_components.errors import InputError, reading
from calib_components.tools.prepare.facts import volume_transforms
from calib_components.tools.prepare.geometry import onto

NIFTI = r"\.nii(\.gz)?"  # how the name of a NIfTI file ends, in small or capital letters
RESERVED = re.compile(rf"{re.escape(FACTS)}|datalist.*\.json")  # files beside the folders of prepared cases
FOUND = ("turned", "classes", "slice_axis", CONTENT)  # what source.json records, besides what a case was made from


@dataclass(frozen=True)
class Case:
    """One volume of a data set and its label, as found in the download.

    Attributes:
        name: Name of its folder of prepared files.
        patient: Patient that it shows; all cases of a patient are in the same split.
        group: Group that splits are stratified by.
        images: File of the image, or a file for each channel.
        label: File of the label.
        problem: What was found to be wrong with the case before any image was read; empty if nothing.
    """

    name: str
    patient: str
    group: str = ""
    images: tuple[Path, ...] = ()
    label: Path = Path()
    problem: str = ""


def list_folder(folder: Path) -> list[Path]:
    """List what is in a folder, which may be missing.

    Raises:
        InputError: It cannot be read.
    """
    if not folder.exists():
        return []
    with reading(folder, "a readable folder"):
        return sorted(folder.iterdir())


def nifti_file(folder: Path, stem: str) -> Path:
    """Return the NIfTI file of a name in a folder, or `stem.nii.gz`, which need not exist."""
    return next(iter(_nifti_files(folder, stem)), folder / f"{stem}.nii.gz")


def _nifti_files(folder: Path, stem: str) -> list[Path]:
    files = folder.glob(f"{glob.escape(stem)}.*")
    return sorted(file for file in files if re.fullmatch(NIFTI, file.name[len(stem) :], re.IGNORECASE))


def made_from(case: Case, facts: Facts, ignore_headers: bool) -> dict[str, Any]:
    """Return what a case is prepared from now: its files with their sizes and times, and whether headers count."""
    files = []
    for file in (*case.images, case.label):
        state = file.stat() if file.is_file() else None
        name = os.path.relpath(file.parent.resolve() / file.name, facts.source)
        files.append({"file": name, "size": state and state.st_size, "mtime_ns": state and state.st_mtime_ns})
    return {"files": files, "ignore_headers": ignore_headers}


def read_done(case: Case, facts: Facts, out: Path, ignore_headers: bool = False) -> dict[str, Any] | None:
    """Return what `source.json` of a prepared case records, or None if the case has to be prepared.

    It need not be if both of its files are there, whole, and were made from the files that the data set has now.
    """
    folder = out / case.name
    try:
        source = json.loads((folder / SOURCE).read_text())
        shapes = [check_whole(folder / name).shape[:3] for name in (IMAGE, LABEL)]
    except (InputError, OSError, ValueError):
        return None
    now = made_from(case, facts, ignore_headers)
    same = isinstance(source, dict) and source.keys() >= {*now, *FOUND} and all(source[key] == now[key] for key in now)
    return source if same and shapes[0] == shapes[1] and not case.problem else None


def transform_case(case: Case, facts: Facts, ignore_headers: bool = False) -> dict[str, Any]:
    """Load a case and bring it to the network's grid.

    Returns:
        `image`, `label` with class indices, and `source`, which `source.json` records: see `made_from`, the files
        `turned` onto the image, the `classes` in the label, and the `slice_axis` of the file, if it was looked for.

    Raises:
        InputError: See `load_case`; or the volume cannot be transformed, or there is nothing to see in it.
    """
    source = made_from(case, facts, ignore_headers)  # before the files are read: if one changes, it is made anew
    data = load_case(case, facts, ignore_headers)
    try:
        data = volume_transforms(facts)(data)
    except (RuntimeError, MemoryError) as error:  # raised by MONAI from the actual cause, such as an empty foreground
        reason = " ".join(str(error.__cause__ or error).split()) or "not enough memory"
        raise InputError(f"{case.images[0]}: expected a volume that can be transformed, got {reason}") from error
    _check_values(case, data["image"])
    label = MapLabelValue(facts.label_codes, range(facts.num_classes))(data["label"])
    applied = data["image"].applied_operations
    axes = [done["extra_info"]["axis"] for done in applied if done["class"] == SlicesLastd.__name__]
    source |= {
        "turned": data["turned"],
        "classes": np.unique(label.numpy()).astype(int).tolist(),
        "slice_axis": next(iter(axes), None),
    }
    return {"image": data["image"], "label": label, "source": source}


def load_case(case: Case, facts: Facts, ignore_headers: bool = False) -> dict[str, Any]:
    """Load a case and check it.

    Args:
        case: Case to load; several images are the channels of one.
        facts: Facts of the data set, which state the number of channels and the values in label files.
        ignore_headers: Whether to take the voxels of the label, and of further channels, for those of the first image
            whatever their headers state.

    Returns:
        `image` `(C, H, W, D)` and `label` `(1, H, W, D)`, float32, both on the voxels of the first image; and `turned`,
        the names of the files whose axes had to be reordered or flipped for that.

    Raises:
        InputError: A file is missing, cannot be read or has values that are not finite; their voxels do not lie at the
            same places; or the label has an unknown value.
    """
    if case.problem:
        raise InputError(case.problem)
    if not case.name.isprintable() or RESERVED.fullmatch(case.name):
        raise InputError(f"{case.label}: expected another name, of printable characters, got {case.name!r}")
    turned = []

    def load_onto(path: Path, image: MetaTensor) -> torch.Tensor:
        volume = _load_volume(path, any_affine=ignore_headers)
        if ignore_headers:
            if volume.shape[1:] != image.shape[1:]:
                expected, got = tuple(image.shape[1:]), tuple(volume.shape[1:])
                raise InputError(f"{path}: expected shape {expected} as in {case.images[0]}, got {got}")
            return volume.as_tensor()
        array, moved = onto(volume, path, image, case.images[0])
        if moved:
            turned.append(path.name)
        return array

    first = _load_volume(case.images[0])
    channels = [first.as_tensor(), *(load_onto(path, first) for path in case.images[1:])]
    image = MetaTensor(torch.cat(channels), first.affine)
    _check_channels(case.images[0], image, facts.in_channels)

    label = MetaTensor(load_onto(case.label, first), first.affine)
    _check_channels(case.label, label, 1)
    check_label_codes(label, facts.label_codes, case.label)
    _check_values(case, image)
    return {"image": image, "label": label, "turned": turned}


def _check_values(case: Case, image: torch.Tensor) -> None:
    """Refuse values that are not finite, and channels in which there is nothing to see."""
    for index, file in enumerate(case.images):
        channels = image if len(case.images) == 1 else image[index : index + 1]
        check_contrast(check_finite(MetaTensor(torch.Tensor(channels), meta={"filename_or_obj": str(file)})))


def _load_volume(path: Path, any_affine: bool = False) -> MetaTensor:
    if not path.is_file():
        found = "a folder" if path.is_dir() else "a broken link" if path.is_symlink() else "no such file"
        raise InputError(f"{path}: expected a NIfTI file, got {found}")
    stem = re.sub(f"{NIFTI}$", "", path.name, flags=re.IGNORECASE)
    if len(files := _nifti_files(path.parent, stem)) > 1:
        raise InputError(f"{path}: expected one file of that name, got {files[1].name} as well; remove one of them")
    with reading(path, "a readable NIfTI file"):
        volume = LoadImage(ensure_channel_first=True)(path, reader=NiftiReader(any_affine))
    if volume.ndim != 4 or volume.numel() == 0:
        raise InputError(f"{path}: expected a 3D volume, got shape {tuple(volume.shape[1:])}")
    if sorted(volume.shape[1:])[1] < SMALLEST_SLICE:
        smallest = f"{SMALLEST_SLICE} x {SMALLEST_SLICE} pixels"
        raise InputError(f"{path}: expected slices of at least {smallest}, got shape {tuple(volume.shape[1:])}")
    return volume


def _check_channels(path: Path, volume: torch.Tensor, expected: int) -> None:
    if len(volume) != expected:
        raise InputError(f"{path}: expected {expected} channel(s), got {len(volume)}")
