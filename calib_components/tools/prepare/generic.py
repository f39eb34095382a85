"""Your own data: `images/NAME.nii.gz` and `labels/NAME.nii.gz`."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from calib_components.data.facts import check_class_names
from calib_components.errors import InputError
from calib_components.tools.prepare.case import NIFTI, Case, list_folder, nifti_file
from calib_components.tools.prepare.command import require_cases
from calib_components.tools.prepare.facts import facts_of_dataset
from calib_components.tools.prepare.prepare import prepare_cases

LIKE = ("acdc", "flare", "brats")
WHOLE_NAME = ".+"


def find_cases(src: Path, patient: str = WHOLE_NAME) -> list[Case]:
    """Find every name that has an image in `images` or a label in `labels`.

    Args:
        src: Folder that holds both.
        patient: Regular expression for the part of a name, from its start, that identifies the patient.

    Returns:
        The cases.

    Raises:
        InputError: The expression is not a regular one, or a name does not start with it.
    """
    try:
        pattern = re.compile(patient)
    except re.error as error:
        raise InputError(f"patient: expected a regular expression, got {patient!r}: {error}") from error
    cases = []
    for case in find_pairs(src / "images", "", src / "labels"):
        if not (match := pattern.match(case.name)) or not match[0]:
            raise InputError(
                f"{case.label}: expected a name that starts with the patient pattern {patient!r}, got {case.name}"
            )
        cases.append(replace(case, patient=match[0]))
    return cases


def find_pairs(image_folder: Path, image_suffix: str, label_folder: Path) -> list[Case]:
    """Find every name that has an image or a label; each is taken for a patient of its own."""
    images, labels = _names(image_folder, image_suffix), _names(label_folder, "")
    cases = []
    for name in sorted(images | labels):
        image, label = nifti_file(image_folder, name + image_suffix), nifti_file(label_folder, name)
        problem = ""
        for file, names, others in ((image, images, labels), (label, labels, images)):
            if name not in names and (similar := _similar(name, names - others)):
                problem = (
                    f"{file}: expected a NIfTI file, got no such file but one of {similar}; images and labels have the "
                    "same names"
                )
        cases.append(Case(name, name, "", (image,), label, problem))
    return cases


def _names(folder: Path, suffix: str) -> set[str]:
    file_name = re.compile(rf"([^.].*){re.escape(suffix)}{NIFTI}", re.IGNORECASE | re.DOTALL)
    return {match[1] for match in map(file_name.fullmatch, (file.name for file in list_folder(folder))) if match}


def _similar(name: str, names: set[str]) -> str:
    """Find a name that differs by an ending such as `_label`, in either direction."""
    long = [other for other in names if re.match(rf"{re.escape(name)}[._-]", other)]
    short = [other for other in names if re.match(rf"{re.escape(other)}[._-]", name)]
    return min([*long, *short], key=len, default="")


def prepare_generic(
    src: Path,
    out: Path,
    labels: Sequence[str],
    *,
    like: str = "acdc",
    in_channels: int = 1,
    patient: str = WHOLE_NAME,
    image_size: Sequence[int] | None = None,
    slice_axis: int | None = None,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    folds: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    skip_bad: bool = False,
    ignore_headers: bool = False,
) -> None:
    """Prepare your own images and labels.

    `out/facts.yaml` then holds the facts of your data, which a bundle reads in place of its own.

    Args:
        src: Folder that holds `images` and `labels`, with files of the same names.
        out: Folder of the prepared cases.
        labels: Names of the structures, in the order of their values in the label files: 1, 2, ... (0 is background).
        like: Data set whose geometry and intensities to follow: acdc (MR, slices as stored), flare (abdominal CT) or
            brats (brain MR without the skull).
        in_channels: Channels of an image; if more than one, they are the fourth axis of the file.
        patient: Regular expression for the start of a file's name that identifies the patient, such as '[^_]+', so
            that all files of a patient stay in one split; the whole name if not given.
        image_size: In-plane size of the slices, such as 128,128, multiples of 16. Default: that of `like`.
        slice_axis: Axis of the files along which the slices lie, 0, 1 or 2 (like acdc only). Default: that of the
            largest spacing; if equal, the shortest.
        fractions: Shares of the patients for training, validation and testing; 0,0,1 makes an external test set.
        folds: Number of folds for cross-validation by patient: datalist_fold0.json and so on are written as well.
        seed: Seed of the split.
        workers: Number of processes. Default: one per core, at most 8.
        skip_bad: Leave bad cases out and list them at the end.
        ignore_headers: Take label voxels for those of the image, whatever the headers state, if the shapes agree.

    Raises:
        InputError: An argument, the source or a case is not as expected.
    """
    if like not in LIKE:
        raise InputError(f"like: expected one of {', '.join(LIKE)}, got {like}")
    if in_channels < 1:
        raise InputError(f"in_channels: expected a whole number of at least 1, got {in_channels}")
    names = [name.strip("'\" ") for name in labels]  # quotes that a shell has left
    check_class_names(names, "labels")
    facts = facts_of_dataset(like, src, image_size, slice_axis)
    facts = replace(
        facts,
        num_classes=len(names) + 1,
        in_channels=in_channels,
        class_names=["background", *names],
        label_codes=list(range(len(names) + 1)),
        structures={name: [index] for index, name in enumerate(names, start=1)},
        file_suffixes=[],
        crop_size=facts.image_size,
    )
    cases = require_cases(
        functools.partial(find_cases, patient=patient), src, "images/NAME.nii.gz and labels/NAME.nii.gz"
    )
    prepare_cases(
        cases,
        facts,
        out,
        fractions=fractions,
        seed=seed,
        folds=folds,
        workers=workers,
        skip_bad=skip_bad,
        ignore_headers=ignore_headers,
    )
    if patient == WHOLE_NAME:
        print("Each case counts as a patient of its own. If some are of the same patient, give --patient (see --help).")
