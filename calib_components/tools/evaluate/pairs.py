"""Predictions and their labels, paired by name, and read case by case."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation

from calib_components.data.files import files_below
from calib_components.data.nifti import open_nifti
from calib_components.errors import InputError
from calib_components.inference.images import NIFTI
from calib_components.tools.evaluate.classes import Classes, label_classes, name_classes, paint
from calib_components.tools.evaluate.formats import (
    Header,
    Prediction,
    Stored,
    open_label_map,
    read_header,
    read_label_map,
    read_probabilities,
    turn_onto,
)

__all__ = ["Case", "Saved", "classes_of", "find_cases", "find_predictions", "is_label_map", "patients_of", "read_case"]

ARRAYS = (".npz", ".npy")
LABEL_SUFFIXES = ("_gt", "_seg", "_label")
PROBABILITY, UNCERTAINTY, SEGMENTATION = "_probability", "_uncertainty", "_seg"  # of what our inference writes
SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Case:
    """A prediction and its label.

    Attributes:
        name: What both are called, without suffixes.
        prediction: Files of the prediction.
        label: File of the label.
        channels: Number of channels of the prediction; 0 for a label map.
    """

    name: str
    prediction: Prediction
    label: Path
    channels: int


@dataclass(frozen=True)
class Saved:
    """A prediction and its label as they were saved, on the voxels of the label.

    Attributes:
        probabilities: float32 `(N, X, Y, Z)`; None if the prediction is a label map.
        prediction: uint8 `(X, Y, Z)`, the most probable class, or the class of a label map. With sigmoid channels, what
            `paint` makes of those above 0.5.
        label: uint8, class indices `(1, X, Y, Z)`; with sigmoid channels, 0 or 1, `(N, X, Y, Z)`. Voxels to leave out
            are `classes.ignore_index`.
        affine: `(4, 4)`, of the label.
        spacing: Size of a voxel along each axis, in millimetres.
        lowest: In place of lower probabilities, where logarithms are taken: what a stored 0 can have been.
        highest: In place of higher ones, likewise.
        other_codes: Codes in the label file that no structure has; they count as background.
        other_predicted: Likewise, in the file of a prediction that is a label map.
    """

    probabilities: torch.Tensor | None
    prediction: torch.Tensor
    label: torch.Tensor
    affine: np.ndarray
    spacing: tuple[float, ...]
    lowest: float = 0.0
    highest: float = 1.0
    other_codes: Sequence[int] = ()
    other_predicted: Sequence[int] = ()


def find_cases(predictions: Path, labels: Path, warn_left_out: bool = True) -> list[Case]:
    """Find the predictions of a folder and the label of each, and check shapes and grids by the files' headers.

    Labels are NIfTI files called like their predictions, or with `_gt`, `_seg` or `_label` at the end, which
    predictions may have too; if a folder has such files, only these are labels, so that images may lie beside them.
    Subfolders are searched too. Labels without a prediction are left out. Axes of a prediction may be in another
    order or direction than those of its label.

    Args:
        predictions: Folder of predictions of one kind, see `calib_components.tools.evaluate.formats`.
        labels: Folder of labels.
        warn_left_out: Whether to warn of labels without a prediction.

    Returns:
        The cases, sorted by name.

    Raises:
        InputError: A prediction has no label, two have one name, numbers of channels differ, a file cannot be read, or
            the voxels of a prediction are not those of its label.
    """
    label_files = _find_labels(labels)
    found = find_predictions(predictions, label_files)
    for name, file in [*label_files.items()]:
        stem = cast(re.Match, NIFTI.fullmatch(file.name))[1]
        if name not in found and stem in found:  # a prediction that is called like its label, with the suffix
            label_files[stem] = label_files.pop(name)
    alone = [name for name in found if name not in label_files]
    if alone:
        _check_numbers(alone, found, label_files)
        raise InputError(
            f"{predictions}: expected a label in {labels} for each prediction, of the same name, got none for "
            f"{_listed(alone)}"
        )
    if warn_left_out and (left_out := [name for name in label_files if name not in found]):
        logging.getLogger(__name__).warning(
            "%s: %d label(s) without a prediction, left out: %s", labels, len(left_out), _listed(left_out)
        )
    cases, unknown = [], 0
    for name, prediction in sorted(found.items()):
        header, image = read_header(prediction), open_label_map(label_files[name])
        turn_onto(header, image.affine, image.shape[:3], (prediction.files[0], label_files[name]))
        cases.append(Case(name, prediction, label_files[name], header.channels))
        unknown += header.affine is None
        if header.channels != cases[0].channels:
            raise InputError(
                f"{prediction.files[0]}: expected {_described(cases[0].channels)} like "
                f"{cases[0].prediction.files[0]}, got {_described(header.channels)}"
            )
    if unknown:
        logging.getLogger(__name__).warning(
            "%s: %d prediction(s) without a .pkl or NIfTI file that says where their voxels lie; only their shapes "
            "were compared with the labels', so axes may be flipped or swapped, and HD95 and volumes use the labels' "
            "grids",
            predictions,
            unknown,
        )
    return cases


def _check_numbers(alone: Sequence[str], found: Mapping[str, Prediction], labels: Collection[str]) -> None:
    """Check whether predictions without a label are files of single channels that are numbered in another way."""
    numbers: dict[str, list[str]] = defaultdict(list)
    for name in alone:
        match = re.fullmatch(r"(.+)_(\d+)", name, re.DOTALL)
        if match and match[1] in labels and match[1] not in found and read_header(found[name]).channels == 1:
            numbers[match[1]].append(match[2])
    for base, present in numbers.items():
        missing = next(str(index) for index in range(len(present) + 1) if str(index) not in present)
        if len(present) > 1 and int(missing) < len(present):
            raise InputError(
                f"{found[f'{base}_{present[0]}'].files[0]}: expected channels of {base} that are numbered from 0, "
                f"without gaps and leading zeros, got none called {base}_{missing}"
            )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + more


def _described(channels: int) -> str:
    return f"probabilities of {channels} channel(s)" if channels else "a label map"


def find_predictions(folder: Path, names: Collection[str] = (), numbered: bool = True) -> dict[str, Prediction]:
    """Find the predictions in a folder and its subfolders.

    Args:
        folder: The folder. Uncertainty maps are skipped, and so are label maps beside probabilities of the same name.
        names: Names that files have even if they end like a suffix, such as `patient_1`.
        numbered: Whether files NAME_0, NAME_1 and so on may be the channels of one prediction.

    Returns:
        Each prediction by its name, sorted.

    Raises:
        InputError: The folder cannot be read or has no predictions, or two predictions have one name: also NAME and
            NAME_seg if NAME, maybe the image, has whole numbers.
    """
    groups = _by_stem(_files(folder))
    candidates: dict[str, list[tuple[int, Prediction]]] = defaultdict(list)  # with their ranks; 0 is the best
    channels = _numbered(groups, names) if numbered else {}
    for (_, base), files in channels.items():
        candidates[base].append((0, Prediction(base, "channels", files)))
    in_numbered = {file for files in channels.values() for file in files}
    for (_, stem), by_ending in groups.items():
        file = by_ending.get(".nii")
        arrays = [ending for ending in ARRAYS if ending in by_ending]
        grids = tuple(by_ending[ending] for ending in (".pkl", ".nii") if ending in by_ending)
        for ending in arrays:
            candidates[stem].append((0, Prediction(stem, cast(Any, ending[1:]), (by_ending[ending],), grids)))
        if file is None or arrays or file in in_numbered or (stem not in names and stem.endswith(UNCERTAINTY)):
            continue
        suffixes = () if stem in names else (PROBABILITY, SEGMENTATION)
        suffix = next((suffix for suffix in suffixes if stem.endswith(suffix)), "")
        rank = {PROBABILITY: 0, "": 1, SEGMENTATION: 2}[suffix]
        name = stem.removesuffix(suffix)
        candidates[name].append((rank, Prediction(name, "probability", (file,))))
    if not candidates:
        raise InputError(f"{folder}: expected predictions, .nii, .nii.gz, .npz or .npy files, got none")
    return {name: _best(name, candidates[name]) for name in sorted(candidates)}


def _best(name: str, candidates: Sequence[tuple[int, Prediction]]) -> Prediction:
    """Choose among the predictions of one name."""
    (rank, best), *others = sorted(candidates, key=lambda candidate: candidate[0])
    is_labels = best.kind == "probability" and is_label_map(best.files[0])
    if others and (others[0][0] == rank or is_labels):
        other = others[0][1].files[0]
        hint = f"; if {best.files[0].name} is the image, move it away" if is_labels else ""
        raise InputError(f"{best.files[0]}: expected one prediction called {name}, got another, {other}{hint}")
    return replace(best, kind="labels") if is_labels else best


def is_label_map(file: Path) -> bool:
    """Whether a NIfTI file has one whole number for each voxel."""
    image = open_nifti(file)
    is_volume = len(image.shape) == 3 or image.shape[3:] == (1,)
    return is_volume and image.get_data_dtype().kind in "iu" and cast(Any, image.dataobj).slope == 1


def _numbered(
    groups: Mapping[tuple[Path, str], Mapping[str, Path]], names: Collection[str]
) -> dict[tuple[Path, str], tuple[Path, ...]]:
    """Find files of single channels, NAME_0, NAME_1 and so on, by their folder and NAME."""
    found: dict[tuple[Path, str], dict[int, Path]] = defaultdict(dict)
    for (folder, stem), files in groups.items():
        if ".nii" in files and stem not in names and (match := re.fullmatch(r"(.+)_(0|[1-9]\d*)", stem, re.DOTALL)):
            found[folder, match[1]][int(match[2])] = files[".nii"]
    return {
        key: tuple(files[index] for index in range(len(files)))
        for key, files in found.items()
        if len(files) > 1 and files.keys() == set(range(len(files)))
        if len(open_nifti(files[0]).shape) == 3 and not is_label_map(files[0])
    }


def _find_labels(folder: Path) -> dict[str, Path]:
    """Find the labels in a folder and its subfolders, by the names of their predictions."""
    files = [(stem, files[".nii"]) for (_, stem), files in _by_stem(_files(folder)).items() if ".nii" in files]
    if suffixed := [(stem, file) for stem, file in files if stem.endswith(LABEL_SUFFIXES)]:
        files = [(stem[: stem.rindex("_")], file) for stem, file in suffixed]
    if not files:
        raise InputError(f"{folder}: expected labels, .nii or .nii.gz files, got none")
    labels: dict[str, Path] = {}
    for name, file in files:
        if name in labels:
            raise InputError(f"{file}: expected one label called {name}, got another, {labels[name]}")
        labels[name] = file
    return labels


def _files(folder: Path) -> list[Path]:
    """All files in a folder and its subfolders, see `files_below`."""
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder, got {'a file' if folder.exists() else 'nothing'}")
    files = []
    for file in files_below(folder):
        if file.is_file():
            files.append(file)
        elif file.is_symlink() and (NIFTI.fullmatch(file.name) or file.suffix.lower() in (*ARRAYS, ".pkl")):
            raise InputError(f"{file}: expected a file, got a link to {file.readlink()}, which is not there")
    return sorted(files)


def _by_stem(files: Sequence[Path]) -> dict[tuple[Path, str], dict[str, Path]]:
    """Files that predictions are made of, by their folder and name and then by their ending; .nii is also .nii.gz."""
    groups: dict[tuple[Path, str], dict[str, Path]] = defaultdict(dict)
    for file in files:
        if match := NIFTI.fullmatch(file.name):
            stem, ending = match[1], ".nii"
        elif file.suffix.lower() in (*ARRAYS, ".pkl"):
            stem, ending = file.stem, file.suffix.lower()
        else:
            continue
        if (other := groups[file.parent, stem].setdefault(ending, file)) != file:
            raise InputError(f"{file}: expected one such file, got another, {other}")
    return groups


def classes_of(
    cases: Sequence[Case], structures: Sequence[str] | None, sigmoid: bool, ignore_index: int | None
) -> Classes:
    """Find what the channels of these cases are, see `name_classes`.

    Raises:
        InputError: The options are not those of so many channels.
    """
    first = cases[0].prediction
    ours = first.files[0].name.startswith(f"{first.name}{PROBABILITY}.")
    classes = name_classes(cases[0].channels, structures, sigmoid, ignore_index, with_background=ours)
    if classes.skip:
        logging.getLogger(__name__).warning(
            "%s: %d channels for %d structures; the first is taken for the background and not read",
            first.files[0],
            cases[0].channels,
            len(classes.names),
        )
    given, channels = list(classes.structures), list(classes.names[1:])
    if cases[0].channels and not classes.sigmoid and given != channels and sorted(given) == sorted(channels):
        logging.getLogger(__name__).warning(
            "%s: the channels after the background are taken in ascending order of codes, not as in --structures: %s%s",
            first.files[0],
            ", ".join(channels[:SHOWN]),
            " and so on" if len(channels) > SHOWN else "",
        )
    return classes


def patients_of(cases: Sequence[str], pattern: str | None) -> dict[str, str]:
    """Find the patient of each case by its name.

    Args:
        cases: Names of the cases.
        pattern: Regular expression for the part that names the patient; None if each case is a patient.

    Raises:
        InputError: The expression is not a regular one, or a name has no such part.

    Examples:
        >>> patients_of(["patient001_frame01", "patient001_frame12"], r"patient\\d+")
        {'patient001_frame01': 'patient001', 'patient001_frame12': 'patient001'}
    """
    if pattern is None:
        return {case: case for case in cases}
    try:
        found = {case: re.search(pattern, case) for case in cases}
    except re.error as error:
        raise InputError(f"--patient_pattern: expected a regular expression, got {pattern!r}: {error}") from None
    patients = {}
    for case, match in found.items():
        if match is None or not match[0]:
            raise InputError(f"--patient_pattern: expected a part of each case's name, got {pattern!r}, not in {case}")
        patients[case] = match[0]
    return patients


def read_case(case: Case, classes: Classes) -> Saved:
    """Read a case.

    Args:
        case: What `find_cases` found.
        classes: What its channels are, see `classes_of`.

    Raises:
        InputError: A file cannot be read, values are not probabilities or unknown label codes, or the voxels of the
            prediction are not those of the label.
    """
    name = case.prediction.files[0]
    codes, affine = read_label_map(case.label)
    label, other_codes = label_classes(codes, classes, case.label)
    other_predicted: list[int] = []
    if case.prediction.kind == "labels":
        own_codes, own_affine = read_label_map(name)
        values, other_predicted = label_classes(own_codes, replace(classes, ignore_code=None), name)
        stored = Stored(values, own_affine, step=0.0, lowest=0.0, highest=1.0)
    else:
        stored = read_probabilities(case.prediction, classes.sigmoid, classes.skip)
        values = stored.values
        if len(values) != len(classes.names):
            raise InputError(f"{name}: expected {len(classes.names)} channels, got {len(values)}")
    header = Header(len(values), values.shape[1:], stored.affine)
    if (turn := turn_onto(header, affine, codes.shape, (name, case.label))) is not None:
        values = np.stack([apply_orientation(channel, turn) for channel in values])
    probabilities = None if case.prediction.kind == "labels" else torch.from_numpy(values)
    if probabilities is None:
        prediction = values[0]
    elif classes.sigmoid:
        prediction = paint(values > 0.5, classes)
    else:
        prediction = values.argmax(0).astype(np.uint8)
    return Saved(
        probabilities,
        torch.from_numpy(prediction),
        torch.from_numpy(label),
        affine,
        tuple(map(float, voxel_sizes(affine))),
        stored.lowest,
        stored.highest,
        other_codes,
        other_predicted,
    )
