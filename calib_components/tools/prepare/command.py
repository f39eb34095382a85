"""The command that prepares a data set."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from calib_components.data.facts import Facts, check_class_names
from calib_components.errors import InputError, check_choice, check_count
from calib_components.tools.prepare import acdc, brats, flare, generic
from calib_components.tools.prepare.case import Case
from calib_components.tools.prepare.facts import facts_of_dataset
from calib_components.tools.prepare.prepare import prepare_cases

DATASETS = {"acdc": acdc, "flare": flare, "brats": brats, "generic": generic}
LIKE = ("acdc", "flare", "brats")  # those with a bundle


def prepare_data(
    dataset: str,
    src: Path,
    out: Path,
    labels: Sequence[str] | None = None,
    *,
    like: str | None = None,
    in_channels: int | None = None,
    patient: str | None = None,
    image_size: Sequence[int] | None = None,
    slice_axis: int | None = None,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    folds: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    skip_bad: bool = False,
    ignore_headers: bool = False,
) -> None:
    """Prepare a data set: write its cases on the network's grid, their facts and the lists of the splits.

    The same command continues an interrupted run.

    Args:
        dataset: acdc (ACDC 2017, cardiac cine MR), flare (FLARE 2021, abdominal CT), brats (BraTS 2019 to 2021, brain
            MR) or generic (your own images and labels).
        src: Folder of the data set as downloaded. acdc: holds `training`, or `patientNNN` folders. flare: holds
            `TrainingImg` and `TrainingMask`. brats: holds cases at any depth. generic: holds `images` and `labels` with
            files of the same names.
        out: Folder of the prepared cases.
        labels: Names of the structures, in the order of their values in the label files: 1, 2, ..., where 0 is the
            background (generic only).
        like: Data set whose geometry and intensities to follow: acdc (MR, slices as stored), flare (abdominal CT) or
            brats (brain MR without the skull) (generic only). Default: acdc.
        in_channels: Channels of an image; if more than one, they are the fourth axis of the file (generic only).
            Default: 1.
        patient: Regular expression for the start of a case's name that identifies the patient, such as '[^_]+', so
            that all files of a patient stay in one split. Default: what the data set states, or else the whole name.
        image_size: In-plane size of the slices, such as 128,128, multiples of 16. Default: that of the bundle.
        slice_axis: Axis of the files along which the slices lie, 0, 1 or 2 (acdc, and generic like acdc). Default:
            that of the largest spacing; if equal, the shortest.
        fractions: Shares of the patients for training, validation and testing; 0,0,1 makes an external test set.
        folds: Number of folds for cross-validation by patient: datalist_fold0.json and so on are written as well.
        seed: Seed of the split.
        workers: Number of cases that are prepared at a time. Default: one per core, at most 8.
        skip_bad: Leave bad cases out and list them at the end.
        ignore_headers: Take label voxels for those of the image, whatever the headers state, if the shapes agree.

    Raises:
        InputError: An argument, the source or a case is unsuitable.
    """
    check_choice("dataset", dataset, DATASETS)
    check_choice("like", like or "acdc", LIKE)
    if dataset == "generic":
        facts = _own_facts(facts_of_dataset(like or "acdc", src, image_size, slice_axis), labels, in_channels)
    else:
        for name, value in {"labels": labels, "like": like, "in_channels": in_channels}.items():
            if value is not None:
                raise InputError(f"{name} is an option of the data set generic. Leave it out for {dataset}.")
        facts = facts_of_dataset(dataset, src, image_size, slice_axis)
    cases = require_cases(DATASETS[dataset].find_cases, src, DATASETS[dataset].LAYOUT)
    if patient is not None:
        cases = [replace(case, patient=_patient_of(case, patient)) for case in cases]
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
    if dataset == "generic" and patient is None:
        print("Each case counts as a patient of its own. If some are of the same patient, give --patient (see --help).")


def _own_facts(facts: Facts, labels: Sequence[str] | None, in_channels: int | None) -> Facts:
    """Return the facts of a user's own data, which follow the geometry and intensities of a data set."""
    if not labels:
        raise InputError("labels: give the names of the structures, such as --labels liver,spleen.")
    names = [str(name).strip("'\" ") for name in labels]  # without quotes that a shell has left
    check_class_names(names, "labels")
    channels = 1 if in_channels is None else in_channels
    check_count("in_channels", channels, 1)
    return replace(
        facts,
        num_classes=len(names) + 1,
        in_channels=channels,
        class_names=["background", *names],
        label_codes=list(range(len(names) + 1)),
        structures={name: [index] for index, name in enumerate(names, start=1)},
        file_suffixes=[],
        crop_size=facts.image_size,
    )


def _patient_of(case: Case, pattern: str) -> str:
    try:
        match = re.match(pattern, case.name)
    except re.error as error:
        raise InputError(f"patient: {pattern!r} is not a regular expression: {error}.") from error
    if not match or not match[0]:
        raise InputError(f"patient: {pattern!r} does not match the start of the name {case.name!r}.")
    return match[0]


def require_cases(find_cases: Callable[[Path], list[Case]], src: Path, layout: str) -> list[Case]:
    """List the cases in a folder, of which there must be at least one.

    Raises:
        InputError: The folder is missing, or has no case.
    """
    if not src.is_dir():
        raise InputError(f"{src}: no such folder.")
    if not (cases := find_cases(src)):
        raise InputError(f"{src}: no cases found. The layout is {layout}.")
    return cases
