"""Predictions and their labels, paired by name, and read case by case."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff

from calib_components.data.nifti import axes_onto, files_below, grid_distance
from calib_components.errors import InputError
from calib_components.inference.images import NIFTI
from calib_components.tools.evaluate.classes import Classes, label_classes, name_classes, paint
from calib_components.tools.evaluate.formats import (
    FORMATS,
    PROBABILITY,
    Groups,
    Header,
    Prediction,
    open_label_map,
    read_label_map,
)

__all__ = ["Case", "Saved", "classes_of", "find_cases", "find_predictions", "patients_of", "read_case", "turn_onto"]

ENDINGS = (".npz", ".npy", ".pkl")
LABEL_SUFFIXES = ("_gt", "_seg", "_label")
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
        lowest: In place of lower probabilities, where logarithms are taken: what a stored 0 can have been.
        highest: In place of higher ones, likewise.
        other_codes: Codes in the label file that no structure has; they count as background.
        other_predicted: Likewise, in the file of a prediction that is a label map.
    """

    probabilities: torch.Tensor | None
    prediction: torch.Tensor
    label: torch.Tensor
    affine: np.ndarray
    lowest: float = 0.0
    highest: float = 1.0
    other_codes: Sequence[int] = ()
    other_predicted: Sequence[int] = ()

    @property
    def spacing(self) -> tuple[float, ...]:
        """Size of a voxel along each axis, in millimetres."""
        return tuple(map(float, voxel_sizes(self.affine)))


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
    if alone := [name for name in found if name not in label_files]:
        raise InputError(
            f"{predictions}: no label for {_listed(alone)}. Give each prediction a label of the same name in {labels}. "
            "Number files of channels from 0, without gaps and leading zeros."
        )
    if warn_left_out and (left_out := [name for name in label_files if name not in found]):
        message = "%s: %d label(s) without a prediction, left out: %s"
        logging.getLogger(__name__).warning(message, labels, len(left_out), _listed(left_out))
    cases, unknown = [], 0
    for name, prediction in sorted(found.items()):
        header, image = prediction.header(), open_label_map(label_files[name])
        turn_onto(header, image.affine, image.shape[:3], prediction.files[0], label_files[name])
        cases.append(Case(name, prediction, label_files[name], header.channels))
        unknown += header.affine is None
        if header.channels != cases[0].channels:
            first, here = (f"{case.prediction.files[0]} has {case.channels}" for case in (cases[0], cases[-1]))
            raise InputError(f"{here} channels, {first}. Predictions need the same number; label maps have 0.")
    if unknown:
        logging.getLogger(__name__).warning(
            "%s: %d prediction(s) without a .pkl or NIfTI file that says where their voxels lie; only their shapes "
            "were compared with the labels', so axes may be flipped or swapped, and HD95 and volumes use the labels' "
            "grids",
            predictions,
            unknown,
        )
    return cases


def _listed(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def find_predictions(
    folder: Path, names: Collection[str] = (), formats: Sequence[type[Prediction]] = FORMATS
) -> dict[str, Prediction]:
    """Find the predictions in a folder and its subfolders.

    Args:
        folder: The folder. Uncertainty maps are skipped, and so are label maps beside probabilities of the same name.
        names: Names that files have even if they end like a suffix, such as `patient_1`.
        formats: Formats that they may have.

    Returns:
        Each prediction by its name, sorted.

    Raises:
        InputError: The folder cannot be read or has no predictions, or two predictions have one name: also NAME and
            NAME_seg if NAME, maybe the image, has whole numbers.
    """
    groups = _by_stem(folder)
    candidates: dict[str, list[tuple[int, Prediction]]] = defaultdict(list)
    for each in formats:
        found = [*each.find(groups, names)]
        used = {file for _, prediction in found for file in (*prediction.files, *prediction.grids)}
        groups = {key: {end: file for end, file in group.items() if file not in used} for key, group in groups.items()}
        for rank, prediction in found:
            candidates[prediction.name].append((rank, prediction))
    if not candidates:
        raise InputError(f"{folder} holds no predictions: no .nii, .nii.gz, .npz or .npy files.")
    best = {}
    for name in sorted(candidates):
        (rank, best[name]), *others = sorted(candidates[name], key=lambda candidate: candidate[0])
        if others and (others[0][0] == rank or best[name].header().channels == 0):
            files = f"{best[name].files[0]} and {others[0][1].files[0]}"
            raise InputError(f"Two predictions are called {name}: {files}. If one is the image, move it away.")
    return best


def _find_labels(folder: Path) -> dict[str, Path]:
    """Find the labels in a folder and its subfolders, by the names of their predictions."""
    files = [(stem, files[".nii"]) for (_, stem), files in _by_stem(folder).items() if ".nii" in files]
    if suffixed := [(stem, file) for stem, file in files if stem.endswith(LABEL_SUFFIXES)]:
        files = [(stem[: stem.rindex("_")], file) for stem, file in suffixed]
    if not files:
        raise InputError(f"{folder} holds no labels: no .nii or .nii.gz files.")
    labels: dict[str, Path] = {}
    for name, file in files:
        if labels.setdefault(name, file) != file:
            raise InputError(f"Two labels are called {name}: {labels[name]} and {file}.")
    return labels


def _by_stem(folder: Path) -> Groups:
    """Files that predictions are made of, by their folder and name and then by their ending."""
    if not folder.is_dir():
        raise InputError(f"Folder does not exist: {folder}.")
    groups: dict[tuple[Path, str], dict[str, Path]] = defaultdict(dict)
    for file in sorted(files_below(folder)):
        if match := NIFTI.fullmatch(file.name):
            stem, ending = match[1], ".nii"
        elif (ending := file.suffix.lower()) in ENDINGS:
            stem = file.stem
        else:
            continue
        if groups[file.parent, stem].setdefault(ending, file) != file:
            raise InputError(f"Two files are called {stem}: {groups[file.parent, stem][ending]} and {file}.")
    return groups


def turn_onto(header: Header, target: np.ndarray, shape: tuple[int, ...], file: Path, label: Path) -> np.ndarray | None:
    """Find how the axes of a prediction are reordered and flipped to be those of a label; None if they stay.

    The label has the affine `target` and the shape `shape`. If the affine of the prediction is not known, its voxels
    are taken for those of the label if shapes agree.

    Raises:
        InputError: Their voxels do not lie at the same places.
    """
    affine, moved, turn = header.affine, header.shape, None
    if affine is not None and (header.shape != shape or grid_distance(affine, target, shape)):
        turn = axes_onto(affine, target)
        affine = affine @ inv_ornt_aff(turn, header.shape)
        moved = tuple(header.shape[axis] for axis in np.argsort(turn[:, 0]))
    if moved != shape:
        raise InputError(
            f"{file}: shape {header.shape} is not that of {label}, {shape}. Check the order of the axes of an array; "
            "nnU-Net's first version saves only the part that it crops to."
        )
    if affine is not None and (away := grid_distance(affine, target, shape)):
        raise InputError(
            f"{file}: voxels differ from those of {label} by up to {away:.3g} mm. Resample one to the other."
        )
    return turn


def classes_of(
    cases: Sequence[Case], structures: Sequence[str] | None, sigmoid: bool, ignore_index: int | None
) -> Classes:
    """Find what the channels of these cases are, see `name_classes`.

    Raises:
        InputError: The options are not those of so many channels.
    """
    channels, first = cases[0].channels, cases[0].prediction
    ours = first.files[0].name.startswith(f"{first.name}{PROBABILITY}.")
    classes = name_classes(channels, structures, sigmoid, ignore_index, with_background=ours)
    if classes.skip:
        message = "%s: %d channels for %d structures; the first is taken for the background and not read"
        logging.getLogger(__name__).warning(message, first.files[0], channels, len(classes.names))
    given, named = list(classes.structures), list(classes.names[1:])
    if channels and not classes.sigmoid and given != named and sorted(given) == sorted(named):
        logging.getLogger(__name__).warning(
            "%s: the channels after the background are taken in ascending order of codes, not as in --structures: %s",
            first.files[0],
            ", ".join(named[:SHOWN]),
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
        raise InputError(f"--patient_pattern: {pattern!r} is no regular expression: {error}.") from None
    for case, match in found.items():
        if match is None or not match[0]:
            raise InputError(f"--patient_pattern: {pattern!r} matches no part of the name {case}.")
    return {case: match[0] for case, match in found.items() if match}


def read_case(case: Case, classes: Classes) -> Saved:
    """Read a case.

    Args:
        case: What `find_cases` found.
        classes: What its channels are, see `classes_of`.

    Raises:
        InputError: A file cannot be read, values are not probabilities or unknown label codes, or the voxels of the
            prediction are not those of the label.
    """
    header, file = case.prediction.header(), case.prediction.files[0]
    codes, affine = read_label_map(case.label)
    label, other_codes = label_classes(codes, classes, case.label)
    other_predicted: list[int] = []
    limits = 0.0, 1.0
    if header.channels == 0:
        values, other_predicted = label_classes(read_label_map(file)[0], replace(classes, ignore_code=None), file)
    else:
        stored = case.prediction.probabilities(classes.sigmoid, classes.skip)
        values, limits = stored.values, (stored.lowest, stored.highest)
        if len(values) != len(classes.names):
            raise InputError(f"{file} has {len(values)} channels, not {len(classes.names)}.")
    if (turn := turn_onto(header, affine, codes.shape, file, case.label)) is not None:
        values = np.stack([apply_orientation(channel, turn) for channel in values])
    if header.channels == 0:
        prediction = values[0]
    else:
        prediction = paint(values > 0.5, classes) if classes.sigmoid else values.argmax(0).astype(np.uint8)
    probabilities = torch.from_numpy(values) if header.channels else None
    maps = torch.from_numpy(prediction), torch.from_numpy(label)
    return Saved(probabilities, *maps, affine, *limits, other_codes, other_predicted)
