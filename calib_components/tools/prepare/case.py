"""One case of a data set: its files and its preparation."""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import CenterSpatialCrop, LoadImage
from nibabel.orientations import apply_orientation

from calib_components.data.cases import IMAGE, LABEL, SOURCE
from calib_components.data.facts import Facts
from calib_components.data.nifti import LABEL_SUFFIXES, Grid, NiftiReader, open_nifti, turn_onto
from calib_components.data.transforms import ClassIndicesd, SlicesLastd, check_image, file_name
from calib_components.errors import InputError
from calib_components.tools.prepare.facts import volume_transforms

NIFTI = r"\.nii(\.gz)?"  # ending of a NIfTI file, in small or capital letters


@dataclass(frozen=True)
class Case:
    """One volume of a data set and its label, as found in the download."""

    name: str  # of its folder of prepared files
    patient: str  # all cases of a patient are in the same split
    group: str = ""  # that splits are stratified by
    images: tuple[Path, ...] = ()  # one file, or a file for each channel
    label: Path = Path()
    problem: str = ""  # why it cannot be prepared, if that is known before its files are read


class Options(NamedTuple):
    """What the user vouches for, as the options of the command; what a case holds depends on it."""

    ignore_headers: bool = False
    ignore_intensity: bool = False
    nan_to_num: bool = False


DEFAULTS = Options()


def require_cases(find_cases: Callable[[Path], list[Case]], src: Path, layout: str) -> list[Case]:
    """List the cases in a folder by name; raise `InputError` if it is missing, has none, or two of
    one name.
    """
    if not src.is_dir():
        raise InputError(f"{src}: no such folder.")
    if not (cases := sorted(find_cases(src), key=lambda case: case.name)):
        raise InputError(f"{src}: no cases found. The layout is {layout}.")
    for first, second in itertools.pairwise(cases):
        if first.name == second.name:
            raise InputError(
                f"{second.label}: two cases are called {second.name}, see {first.label}. Rename"
                " one."
            )
    return cases


def nifti_file(folder: Path, stem: str, suffix: str = "") -> Path:
    """Return the NIfTI file of a name and a suffix in any case, or `STEMSUFFIX.nii.gz`, which need
    not exist.
    """
    return next(iter(_nifti_files(folder, stem, suffix)), folder / f"{stem}{suffix}.nii.gz")


def _nifti_files(folder: Path, stem: str, suffix: str = "") -> list[Path]:
    files, ending = (
        folder.glob(f"{glob.escape(stem)}*"),
        re.compile(re.escape(suffix) + NIFTI, re.IGNORECASE),
    )
    return sorted(file for file in files if ending.fullmatch(file.name[len(stem) :]))


def find_pairs(image_folder: Path, label_folder: Path, image_suffix: str = "") -> list[Case]:
    """List every name that has an image or a label; each is taken for a patient of its own.

    A label may have one of `LABEL_SUFFIXES`, unless its image is called so as well.
    """
    images = names_in(image_folder, image_suffix)
    labels: dict[str, Path] = {}
    for stem in names_in(label_folder):
        plain = next((stem.removesuffix(end) for end in LABEL_SUFFIXES if stem.endswith(end)), stem)
        labels.setdefault(stem if stem in images else plain, nifti_file(label_folder, stem))
    return [
        Case(
            name,
            name,
            images=(nifti_file(image_folder, name, image_suffix),),
            label=labels.get(name, nifti_file(label_folder, name)),
        )
        for name in sorted({*images, *labels})
    ]


def names_in(folder: Path, suffix: str = "") -> list[str]:
    """List what precedes a suffix in the names of the NIfTI files of a folder, sorted."""
    pattern = re.compile(rf"([^.].*){re.escape(suffix)}{NIFTI}", re.IGNORECASE)
    return sorted(match[1] for file in folder.glob("*") if (match := pattern.fullmatch(file.name)))


def made_from(case: Case, facts: Facts, options: Options) -> dict[str, Any]:
    """Return what a case is prepared from now: its files with their sizes and times, and the
    options.
    """
    if case.problem:
        raise InputError(case.problem)
    files = []
    for file in (*case.images, case.label):
        if not file.is_file():
            raise InputError(f"{file}: no such file. Image and label need the same name.")
        name, state = os.path.relpath(file.parent.resolve() / file.name, facts.source), file.stat()
        files.append({"file": name, "size": state.st_size, "mtime_ns": state.st_mtime_ns})
    return {"files": files, **options._asdict()}


def read_done(
    case: Case, facts: Facts, out: Path, options: Options = DEFAULTS
) -> dict[str, Any] | None:
    """Return what `source.json` records of a case; None unless it is whole and made from the
    present files.
    """
    folder = out / case.name
    try:
        source, now = json.loads((folder / SOURCE).read_bytes()), made_from(case, facts, options)
        image, label = (open_nifti(folder / name).shape[:3] for name in (IMAGE, LABEL))
    except (InputError, OSError, ValueError):
        return None
    same = all(source.get(key) == value for key, value in now.items())
    return source if same and image == label else None


def transform_case(case: Case, facts: Facts, options: Options = DEFAULTS) -> dict[str, Any]:
    """Load a case and bring it to the network's grid.

    Returns:
        `image`, `label` with class indices, and `source`, which `source.json` records: see
        `made_from`, the files `turned` onto the image, the `classes` in the label, those of them
        that are `lost` to the network, and the `slice_axis` of the file, if it was looked for.
    """
    # Before the files are read: if one changes, it is made anew
    source = made_from(case, facts, options)
    data, turned = load_case(case, facts, options)
    classes = data["label"].as_tensor().unique().int().tolist()
    data = volume_transforms(facts, options.ignore_intensity)(data)
    image = check_image(data["image"])
    axes = [
        done["extra_info"]["axis"]
        for done in image.applied_operations
        if done["class"] == SlicesLastd.__name__
    ]
    seen = data["label"].as_tensor()
    if facts.spatial_dims == 2:
        seen = CenterSpatialCrop([*facts.crop_size, -1])(seen)
    lost = [index for index in classes if not (seen == index).any()]
    source |= {
        "turned": turned,
        "classes": classes,
        "lost": lost,
        "slice_axis": next(iter(axes), None),
    }
    return {**data, "source": source}


def load_case(
    case: Case, facts: Facts, options: Options = DEFAULTS
) -> tuple[dict[Any, Any], list[str]]:
    """Load a case; several images are the channels of one.

    Returns:
        `image` `(C, H, W, D)` and `label` `(1, H, W, D)` with class indices, float32, both on the
        voxels of the first image; and the names of the files whose axes had to be reordered or
        flipped for that.
    """
    reader, of_label = (
        NiftiReader(any_affine, options.nan_to_num)
        for any_affine in (False, options.ignore_headers)
    )
    first = check_image(_load_volume(case.images[0], reader))
    channels, turned = [first.as_tensor()], []
    for path in (*case.images[1:], case.label):
        volume, is_turned = onto(_load_volume(path, of_label), first, options.ignore_headers)
        if path != case.label:
            check_image(volume)
        channels.append(volume.as_tensor())
        turned += [path.name] * is_turned
    *channels, label = channels
    item: dict[Any, Any] = {}
    for key, array, path, expected in (
        ("image", torch.cat(channels), case.images[0], facts.in_channels),
        ("label", label, case.label, 1),
    ):
        if len(array) != expected:
            raise InputError(f"{path}: {len(array)} channel(s) in place of {expected}.")
        item[key] = MetaTensor(array, first.affine, meta={"filename_or_obj": str(path)})
    return ClassIndicesd("label", facts.label_codes)(item), turned


def onto(
    volume: MetaTensor, image: MetaTensor, ignore_headers: bool = False
) -> tuple[MetaTensor, bool]:
    """Reorder and flip the axes of a volume `(C, H, W, D)` so that its voxels are those of an image
    `(C, H, W, D)`.

    With `ignore_headers`, the voxels are taken for those of the image as they are stored.

    Returns:
        The volume on the voxels of the image, and whether its axes were reordered or flipped.
    """
    name, target = file_name(volume), np.asarray(image.affine)
    affine = target if ignore_headers else np.asarray(volume.affine)
    own, other = (
        Grid(affine, tuple(volume.shape[1:]), name),
        Grid(target, tuple(image.shape[1:]), file_name(image)),
    )
    turn = turn_onto(own, other, ", or pass --ignore_headers if the header is wrong")
    array = volume.as_tensor()
    if turn is not None:
        turned = np.moveaxis(apply_orientation(array.movedim(0, -1).numpy(), turn), -1, 0)
        array = torch.from_numpy(np.ascontiguousarray(turned))
    return MetaTensor(array, image.affine, meta={"filename_or_obj": name}), turn is not None


def _load_volume(path: Path, reader: NiftiReader) -> MetaTensor:
    stem = re.sub(f"{NIFTI}$", "", path.name, flags=re.IGNORECASE)
    if others := [file.name for file in _nifti_files(path.parent, stem) if file.name != path.name]:
        raise InputError(f"{path}: {others[0]} is there as well. Remove one of them.")
    volume = LoadImage(ensure_channel_first=True)(path, reader=reader)
    if volume.ndim != 4:
        raise InputError(f"{path}: shape {tuple(volume.shape[1:])} is not that of a 3D volume.")
    return volume
