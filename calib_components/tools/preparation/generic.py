"""Your own data: `images/NAME.nii.gz` and `labels/NAME.nii.gz`."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from calib_components.errors import InputError
from calib_components.tools.preparation.case import Case, nifti_file
from calib_components.tools.preparation.command import require_cases
from calib_components.tools.preparation.facts import Facts
from calib_components.tools.preparation.prepare import prepare_cases

LIKE = ("acdc", "flare", "brats")


def find_cases(src: Path, patient: str = ".+") -> list[Case]:
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
        if not (match := pattern.match(case.name)):
            raise InputError(
                f"{case.label}: expected a name that starts with the patient pattern {patient!r}, got {case.name}"
            )
        cases.append(replace(case, patient=match[0]))
    return cases


def find_pairs(image_folder: Path, image_suffix: str, label_folder: Path) -> list[Case]:
    """Find every name that has an image or a label; each is taken for a patient of its own."""
    names = set()
    for folder, suffix in ((image_folder, image_suffix), (label_folder, "")):
        matches = (re.fullmatch(rf"([^.].*){suffix}\.nii(\.gz)?", file.name) for file in folder.glob("*"))
        names |= {match[1] for match in matches if match}
    return [Case(n, n, "", (nifti_file(image_folder, n + image_suffix),), nifti_file(label_folder, n)) for n in names]


def prepare_generic(
    src: Path,
    out: Path,
    labels: Sequence[str],
    like: str = "acdc",
    in_channels: int = 1,
    patient: str = ".+",
    image_size: Sequence[int] | None = None,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    workers: int | None = None,
    skip_bad: bool = False,
) -> None:
    """Prepare your own images and labels.

    `out/facts.yaml` then holds the facts of your data; a bundle reads it after its own configuration file.

    Args:
        src: Folder that holds `images` and `labels`, with files of the same names.
        out: Folder of the prepared cases.
        labels: Names of the structures, in the order of their values in the label files: 1, 2, ... (0 is background).
        like: Data set whose geometry and intensities to follow: acdc (MR, slices as stored), flare (abdominal CT) or
            brats (brain MR without the skull).
        in_channels: Channels of an image; if more than one, they are the fourth axis of the file.
        patient: Regular expression for the start of a file's name that identifies the patient, such as '[^_]+', so
            that all files of a patient stay in one split; the whole name if not given.
        image_size: In-plane size of the slices, such as 128,128. Default: that of the data set in `like`.
        fractions: Shares of the patients for training, validation and testing; 0,0,1 makes an external test set.
        seed: Seed of the split.
        workers: Number of processes. Default: one per core, at most 8.
        skip_bad: Leave bad cases out and list them at the end.

    Raises:
        InputError: An argument, the source or a case is not as expected.
    """
    if like not in LIKE:
        raise InputError(f"like: expected one of {', '.join(LIKE)}, got {like}")
    names = list(labels)
    if "" in names or len(set(names)) < len(names):
        raise InputError(f"labels: expected different names, got {', '.join(map(repr, names))}")
    facts = replace(
        Facts.of_dataset(like).for_source(src, image_size),
        num_classes=len(names) + 1,
        in_channels=in_channels,
        class_names=["background", *names],
        label_codes=list(range(len(names) + 1)),
        structures={name: [index] for index, name in enumerate(names, start=1)},
        file_suffixes=[],
        crop_size="@image_size",
    )
    cases = require_cases(
        functools.partial(find_cases, patient=patient), src, "images/NAME.nii.gz and labels/NAME.nii.gz"
    )
    prepare_cases(cases, facts, out, fractions, seed, workers, skip_bad)
