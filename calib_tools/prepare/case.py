"""One case of a data set: its files and its preparation."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import CenterSpatialCrop
from nibabel.orientations import apply_orientation

from calib_components.errors import InputError
from calib_tools.prepare.facts import volume_transforms
from calib_workflows.data.cases import IMAGE, LABEL, SOURCE
from calib_workflows.data.facts import IGNORED, Facts
from calib_workflows.data.files import LABEL_SUFFIXES, find_cases, split_name
from calib_workflows.data.nifti import Grid, open_nifti, read_values, turn_onto
from calib_workflows.data.transforms import ClassIndicesd, check_image, file_name


@dataclass(frozen=True)
class SourceCase:
    """One volume of a data set and its label, as found in the download."""

    name: str  # of its folder of prepared files
    patient: str  # all cases of a patient are in the same split
    group: str = ""  # that splits are stratified by
    images: tuple[Path, ...] = ()  # one file, or a file for each channel
    label: Path = Path()
    problem: str = ""  # why it cannot be prepared, if that is known before its files are read


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
    cases = find_cases(sorted(folder.glob("[!.]*")))
    return {place.name: file for place, files in cases.items() for file in files.values()}


def nifti_file(folder: Path, name: str) -> Path:
    """Return the NIfTI file of a name, or `NAME.nii.gz`, which need not exist."""
    return nifti_files(folder).get(name, folder / f"{name}.nii.gz")


def find_pairs(
    image_folder: Path, label_folder: Path, image_suffixes: Sequence[str] = ("",)
) -> list[SourceCase]:
    """List every name that has an image, with a file for each of the suffixes, or a label; each is
    taken for a patient of its own.

    A label may have one of `LABEL_SUFFIXES`, unless its image is called so as well.
    """
    files = nifti_files(image_folder)
    images = {
        name.removesuffix(suffix)
        for name in files
        for suffix in image_suffixes
        if name.endswith(suffix)
    }
    labels: dict[str, Path] = {}
    for name, file in nifti_files(label_folder).items():
        case = name if name in images else split_name(name, LABEL_SUFFIXES, ()).case
        if case in labels:
            raise InputError(f"{file}: {labels[case].name} is a label of {case}, too. Remove one.")
        labels[case] = file
    return [
        SourceCase(
            name,
            name,
            images=tuple(
                files.get(name + suffix, image_folder / f"{name}{suffix}.nii.gz")
                for suffix in image_suffixes
            ),
            label=labels.get(name, label_folder / f"{name}.nii.gz"),
        )
        for name in sorted({*images, *labels})
    ]


def made_from(case: SourceCase, facts: Facts) -> dict[str, Any]:
    """Return what a case is prepared from now: its files with their sizes and times."""
    if case.problem:
        raise InputError(case.problem)
    files = []
    for file in (*case.images, case.label):
        if not file.is_file():
            raise InputError(f"{file}: no such file. Image and label need the same name.")
        name, state = os.path.relpath(file.parent.resolve() / file.name, facts.source), file.stat()
        files.append({"file": name, "size": state.st_size, "mtime_ns": state.st_mtime_ns})
    return {"files": files}


def read_done(case: SourceCase, facts: Facts, out: Path) -> dict[str, Any] | None:
    """Return what `source.json` records of a case; None unless it is whole and made from the
    present files.
    """
    folder = out / case.name
    try:
        source, now = json.loads((folder / SOURCE).read_bytes()), made_from(case, facts)
        image, label = (open_nifti(folder / name).shape[:3] for name in (IMAGE, LABEL))
    except (InputError, OSError, ValueError):
        return None
    same = all(source.get(key) == value for key, value in now.items())
    return source if same and image == label else None


def transform_case(case: SourceCase, facts: Facts) -> dict[str, Any]:
    """Load a case and bring it to the network's grid.

    Returns:
        `image`, `label` with class indices, and `source`, which `source.json` records: see
        `made_from`, the `classes` in the label, those of them that are `lost` to the network, and
        the `slice_axis` of the file, if it was looked for.
    """
    # Before the files are read: if one changes, it is made anew
    source = made_from(case, facts)
    data = load_case(case, facts)
    classes = [index for index in data["label"].unique().int().tolist() if index != IGNORED]
    data = volume_transforms(facts)(data)
    image = check_image(data["image"])
    seen = data["label"].as_tensor()
    if facts.spatial_dims == 2:
        seen = CenterSpatialCrop([*facts.crop_size, -1])(seen)
    lost = [index for index in classes if not (seen == index).any()]
    axis = image.meta.get("slice_axis")
    return {**data, "source": {**source, "classes": classes, "lost": lost, "slice_axis": axis}}


def load_case(case: SourceCase, facts: Facts) -> dict[Any, Any]:
    """Load a case; several images are the channels of one.

    Returns:
        `image` `(C, H, W, D)` and `label` `(1, H, W, D)` with class indices, float32, both on the
        voxels of the first image.
    """
    first = check_image(read_volume(case.images[0]))
    others = [check_image(read_volume(path, first)) for path in case.images[1:]]
    label = read_volume(case.label, first)
    image = torch.cat([volume.as_tensor() for volume in (first, *others)])
    item: dict[Any, Any] = {"image": MetaTensor(image, meta=first.meta), "label": label}
    for key, num_channels in (("image", facts.in_channels), ("label", 1)):
        if len(item[key]) != num_channels:
            raise InputError(
                f"{file_name(item[key])}: {len(item[key])} channel(s) in place of {num_channels}."
            )
    return ClassIndicesd("label", facts.label_codes, facts.ignored_code)(item)


def read_volume(path: Path, target: MetaTensor | None = None) -> MetaTensor:
    """Read a volume `(C, H, W, D)`, float32.

    Its axes are reordered and flipped so that its voxels are those of a `target`, if there is one.
    """
    image = open_nifti(path)
    if len(image.shape) not in (3, 4):
        raise InputError(f"{path}: shape {image.shape} is not that of a 3D volume.")
    affine, shape = np.asarray(image.affine), image.shape[:3]
    values = read_values(image, path).reshape(*shape, -1)
    if target is not None:
        grid = Grid(np.asarray(target.affine), tuple(target.shape[1:]), file_name(target))
        turn = turn_onto(Grid(affine, shape, path), grid)
        values = values if turn is None else apply_orientation(values, turn)
        affine = grid.affine
    channels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 0)))
    return MetaTensor(channels, torch.from_numpy(affine), meta={"filename_or_obj": str(path)})
