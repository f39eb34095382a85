"""One case of a data set: its files and its preparation."""

from __future__ import annotations

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

NIFTI = re.compile(r"(.+)\.nii(\.gz)?", re.IGNORECASE)
LABEL_SUFFIX = re.compile(f"({'|'.join(LABEL_SUFFIXES)})$")


@dataclass(frozen=True)
class SourceCase:
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


def require_cases(
    find_cases: Callable[[Path], list[SourceCase]], src: Path, layout: str
) -> list[SourceCase]:
    """List the cases in a folder by name; raise `InputError` if it is missing, has none, or two of
    one name.
    """
    if not src.is_dir():
        raise InputError(f"{src}: no such folder.")
    cases = sorted(find_cases(src), key=lambda case: case.name)
    if not cases:
        raise InputError(f"{src}: no cases found. The layout is {layout}.")
    for first, second in itertools.pairwise(cases):
        if first.name == second.name:
            raise InputError(
                f"{second.label}: two cases are called {second.name}, see {first.label}. Rename"
                " one."
            )
    return cases


def nifti_files(folder: Path) -> dict[str, Path]:
    """Return the NIfTI files of a folder by their names without the ending; raise `InputError` if
    two share one.
    """
    files: dict[str, Path] = {}
    for file in sorted(folder.glob("[!.]*")):
        match = NIFTI.fullmatch(file.name)
        if match and files.setdefault(match[1], file) is not file:
            raise InputError(
                f"{file}: {files[match[1]].name} is there as well. Remove one of them."
            )
    return files


def nifti_file(folder: Path, name: str) -> Path:
    """Return the NIfTI file of a name, or `NAME.nii.gz`, which need not exist."""
    return nifti_files(folder).get(name, folder / f"{name}.nii.gz")


def find_pairs(image_folder: Path, label_folder: Path, image_suffix: str = "") -> list[SourceCase]:
    """List every name that has an image or a label; each is taken for a patient of its own.

    A label may have one of `LABEL_SUFFIXES`, unless its image is called so as well.
    """
    images = {
        name.removesuffix(image_suffix): file
        for name, file in nifti_files(image_folder).items()
        if name.endswith(image_suffix)
    }
    labels: dict[str, Path] = {}
    for name, file in nifti_files(label_folder).items():
        labels.setdefault(name if name in images else LABEL_SUFFIX.sub("", name), file)
    return [
        SourceCase(
            name,
            name,
            images=(images.get(name) or nifti_file(image_folder, name + image_suffix),),
            label=labels.get(name) or nifti_file(label_folder, name),
        )
        for name in sorted({*images, *labels})
    ]


def made_from(case: SourceCase, facts: Facts, options: Options) -> dict[str, Any]:
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
    case: SourceCase, facts: Facts, out: Path, options: Options = DEFAULTS
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


def transform_case(case: SourceCase, facts: Facts, options: Options = DEFAULTS) -> dict[str, Any]:
    """Load a case and bring it to the network's grid.

    Returns:
        `image`, `label` with class indices, and `source`, which `source.json` records: see
        `made_from`, the `classes` in the label, those of them that are `lost` to the network, and
        the `slice_axis` of the file, if it was looked for.
    """
    # Before the files are read: if one changes, it is made anew
    source = made_from(case, facts, options)
    data = load_case(case, facts, options)
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
    source |= {"classes": classes, "lost": lost, "slice_axis": next(iter(axes), None)}
    return {**data, "source": source}


def load_case(case: SourceCase, facts: Facts, options: Options = DEFAULTS) -> dict[Any, Any]:
    """Load a case; several images are the channels of one.

    Returns:
        `image` `(C, H, W, D)` and `label` `(1, H, W, D)` with class indices, float32, both on the
        voxels of the first image.
    """
    reader = NiftiReader(nan_to_num=options.nan_to_num)
    first = check_image(_load_volume(case.images[0], reader))
    reader = NiftiReader(options.ignore_headers, options.nan_to_num)
    volumes = {
        path: on_grid_of(first, _load_volume(path, reader), options.ignore_headers)
        for path in (*case.images[1:], case.label)
    }
    label = volumes.pop(case.label)
    image = torch.cat([first.as_tensor(), *(check_image(each) for each in volumes.values())])
    item: dict[Any, Any] = {
        "image": _with_channels(image, first, case.images[0], facts.in_channels),
        "label": _with_channels(label, first, case.label, 1),
    }
    return ClassIndicesd("label", facts.label_codes)(item)


def _with_channels(
    volume: torch.Tensor, image: MetaTensor, path: Path, num_channels: int
) -> MetaTensor:
    if len(volume) != num_channels:
        raise InputError(f"{path}: {len(volume)} channel(s) in place of {num_channels}.")
    return MetaTensor(torch.as_tensor(volume), image.affine, meta={"filename_or_obj": str(path)})


def on_grid_of(image: MetaTensor, volume: MetaTensor, ignore_headers: bool = False) -> MetaTensor:
    """Return a volume `(C, H, W, D)` with its axes reordered and flipped so that its voxels are
    those of an image `(C, H, W, D)`.

    With `ignore_headers`, the voxels are taken for those of the image as they are stored.
    """
    name, target = file_name(volume), np.asarray(image.affine)
    affine = target if ignore_headers else np.asarray(volume.affine)
    turn = turn_onto(
        Grid(affine, tuple(volume.shape[1:]), name),
        Grid(target, tuple(image.shape[1:]), file_name(image)),
        ", or pass --ignore_headers if the header is wrong",
    )
    array = volume.as_tensor()
    if turn is not None:
        turned = np.moveaxis(apply_orientation(array.movedim(0, -1).numpy(), turn), -1, 0)
        array = torch.from_numpy(np.ascontiguousarray(turned))
    return MetaTensor(array, image.affine, meta={"filename_or_obj": name})


def _load_volume(path: Path, reader: NiftiReader) -> MetaTensor:
    volume = LoadImage(ensure_channel_first=True)(path, reader=reader)
    if volume.ndim != 4:
        raise InputError(f"{path}: shape {tuple(volume.shape[1:])} is not that of a 3D volume.")
    return volume
