"""Predictions and their labels, paired by name, and read case by case."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation

from calib_components.data.nifti import (
    LABEL_SUFFIXES,
    Grid,
    files_below,
    open_nifti,
    read_values,
    turn_onto,
)
from calib_components.data.transforms import looks_like_labels
from calib_components.errors import InputError
from calib_components.inference.images import NIFTI
from calib_components.metrics.measures import Case as MeasuredCase
from calib_components.tools.evaluate.classes import (
    IGNORED,
    Classes,
    label_classes,
    name_classes,
    paint,
)
from calib_components.tools.evaluate.formats import (
    ARRAYS,
    Header,
    Nifti,
    Prediction,
    is_label_map,
    read_label_map,
)

# Suffixes of what our inference writes, beside _seg
PROBABILITY, UNCERTAINTY = "_probability", "_uncertainty"
CUBIC_MM = 1000  # in a millilitre
SHOWN = 5  # of many values in a message


@dataclass(frozen=True)
class Case:
    """A prediction and its label.

    Attributes:
        label: Its label; one of its own files, if it has none.
        channels: Number of channels of the prediction; 0 for a label map.
    """

    name: str
    prediction: Prediction
    label: Path
    channels: int


@dataclass(eq=False, kw_only=True)
class Saved(MeasuredCase):
    """A prediction and its label as they were saved, to be measured on the voxels of the label, in
    mm and ml.

    Attributes:
        prediction: uint8 `(X, Y, Z)`, the most probable class, or the class of a label map. With
            sigmoid channels, what `paint` makes of those above 0.5.
        affine: `(4, 4)`, of the label.
        other_codes: Codes in the label file that no structure has; they count as background.
        other_predicted: Likewise, in the file of a prediction that is a label map.
    """

    prediction: torch.Tensor
    affine: np.ndarray
    other_codes: Sequence[int]
    other_predicted: Sequence[int]


def find_cases(predictions: Path, labels: Path | None, warn_left_out: bool = True) -> list[Case]:
    """Find the predictions of a folder and the label of each, and check shapes and grids by the
    files' headers.

    Labels are NIfTI files called like their predictions, or with `_gt`, `_seg` or `_label` at the
    end, which predictions may have too; if a folder has such files, only these are labels, so that
    images may lie beside them. Subfolders are searched too. Labels without a prediction are left
    out. Axes of a prediction may be in another order or direction than those of its label. None
    stands for no labels, without which label maps are refused.

    The cases are sorted by name.
    """
    label_files = {} if labels is None else find_labels(labels)
    found = find_predictions(predictions, label_files)
    if labels is not None and (alone := [name for name in found if name not in label_files]):
        raise InputError(
            f"{predictions}: no label for {listed(alone)}. Give each prediction a label of the same"
            f" name in {labels}. Number files of channels from 0, without gaps and leading zeros."
        )
    if warn_left_out and (left_out := [name for name in label_files if name not in found]):
        message = "%s: %d label(s) without a prediction, left out: %s"
        logging.getLogger(__name__).warning(message, labels, len(left_out), listed(left_out))
    cases, unknown = [], 0
    for name, prediction in found.items():
        header, label = prediction.header(), label_files.get(name, prediction.files[0])
        if labels is not None:
            image = open_nifti(label)
            turn_of(header, prediction.files[0], Grid(image.affine, image.shape[:3], label))
            unknown += header.affine is None
        elif header.channels == 0:
            raise InputError(
                f"{label} is a label map. Quality is estimated from probabilities: save those, or"
                " give labels."
            )
        cases.append(Case(name, prediction, label, header.channels))
        if header.channels != cases[0].channels:
            first, here = (
                f"{case.prediction.files[0]} has {case.channels}" for case in (cases[0], cases[-1])
            )
            raise InputError(
                f"{here} channels, {first}. Predictions need the same number; label maps have 0."
            )
    if unknown:
        logging.getLogger(__name__).warning(
            "%s: %d prediction(s) without a .pkl or NIfTI file that says where their voxels lie."
            " Their axes may be flipped or swapped unnoticed; HD95 and volumes use the labels'"
            " grids.",
            predictions,
            unknown,
        )
    return cases


def listed(values: Sequence[Any]) -> str:
    """Return values in ascending order as text, the first few of many."""
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return ", ".join(map(str, sorted(values)[:SHOWN])) + more


def find_predictions(
    folder: Path, names: Collection[str] = (), join_channels: bool = True
) -> dict[str, Prediction]:
    """Find the predictions in a folder and its subfolders, by their names, sorted.

    Uncertainty maps are skipped, and so are label maps beside probabilities of the same name. Two
    of one name are an error: also NAME and NAME_seg if NAME, maybe the image, has whole numbers. Of
    `names`, known from the labels, a part may look like a suffix, as of `patient_1`. `NAME_0`,
    `NAME_1` and so on are channels of one, with `join_channels`.
    """
    # The lowest number of each name is taken
    candidates: dict[str, list[tuple[int, Prediction]]] = defaultdict(list)
    files = sorted(files_below(folder))
    used: set[Path] = set()
    for file in files:
        if array := ARRAYS.get(file.suffix):
            grids = tuple(
                grid
                for end in (".pkl", ".nii", ".nii.gz")
                if (grid := file.with_suffix(end)).is_file()
            )
            candidates[file.stem].append((0, array(file.stem, (file,), grids)))
            used.update(grids)
    stems = {
        file: match[1]
        for file in files
        if file not in used and (match := NIFTI.fullmatch(file.name))
    }
    for prediction in _channel_files(stems, names) if join_channels else []:
        candidates[prediction.name].append((0, prediction))
        used.update(prediction.files)
    for file, stem in stems.items():
        if file in used or (stem not in names and stem.endswith(UNCERTAINTY)):
            continue
        suffixes = () if stem in names else (PROBABILITY, *LABEL_SUFFIXES)
        suffix = next((suffix for suffix in suffixes if stem.endswith(suffix)), "")
        rank = 2 if is_label_map(file) else 0 if suffix == PROBABILITY else 1
        prediction = Nifti(stem.removesuffix(suffix), (file,))
        candidates[prediction.name].append((rank, prediction))
    if not candidates:
        raise InputError(f"{folder} holds no predictions: no .nii, .nii.gz, .npz or .npy files.")
    best = {}
    for name in sorted(candidates):
        (rank, best[name]), *others = sorted(candidates[name], key=lambda candidate: candidate[0])
        if others and others[0][0] == rank:
            both = f"{best[name].files[0]} and {others[0][1].files[0]}"
            raise InputError(
                f"Two predictions are called {name}: {both}. If one is the image, move it away."
            )
    return best


def _channel_files(stems: Mapping[Path, str], names: Collection[str]) -> list[Nifti]:
    """Find predictions with a file for each channel, numbered from 0."""
    numbered: dict[tuple[Path, str], dict[int, Path]] = defaultdict(dict)
    for file, stem in stems.items():
        if stem not in names and (match := re.fullmatch(r"(.+)_(0|[1-9]\d*)", stem, re.DOTALL)):
            numbered[file.parent, match[1]][int(match[2])] = file
    return [
        Nifti(name, tuple(parts[index] for index in sorted(parts)))
        for (_, name), parts in numbered.items()
        if len(parts) > 1 and max(parts) == len(parts) - 1
    ]


def find_labels(folder: Path) -> dict[str, Path]:
    """Find the labels in a folder and its subfolders, by the names of their predictions.

    Files beside those with a suffix of labels are images, unless those of other names are all label
    maps.
    """
    plain = {
        file: match[1] for file in files_below(folder) if (match := NIFTI.fullmatch(file.name))
    }
    suffixed = {
        file: stem[: stem.rindex("_")]
        for file, stem in plain.items()
        if stem.lower().endswith(LABEL_SUFFIXES)
    }
    plain = {file: stem for file, stem in plain.items() if file not in suffixed}
    alone = [file for file, stem in plain.items() if stem not in suffixed.values()]
    names = suffixed or plain
    if suffixed and alone and all(map(_holds_labels, alone)):
        names = {
            **plain,
            **{file: name for file, name in suffixed.items() if name not in plain.values()},
        }
        stray = [file.name for file in suffixed if file not in names]
        logging.getLogger(__name__).warning(
            "%s: labels have no suffix, left out: %s", folder, listed(stray) or "none"
        )
    if not names:
        raise InputError(f"{folder} holds no labels: no .nii or .nii.gz files.")
    labels: dict[str, Path] = {}
    for file, name in names.items():
        if labels.setdefault(name, file) != file:
            raise InputError(f"Two labels are called {name}: {labels[name]} and {file}.")
    return labels


def _holds_labels(file: Path) -> bool:
    image = open_nifti(file)
    return len(image.shape) == 3 and looks_like_labels(torch.from_numpy(read_values(image, file)))


def turn_of(header: Header, file: Path, label: Grid) -> np.ndarray | None:
    """Return how to turn the axes of a prediction to those of its label; without an affine, compare
    their shapes.
    """
    if header.affine is not None:
        return turn_onto(Grid(header.affine, header.shape, file), label)
    if header.shape != label.shape:
        shapes = f"shape {header.shape} is not that of {label.name}, {label.shape}"
        raise InputError(f"{file}: {shapes}. Check the order of the axes.")
    return None


def classes_of(
    cases: Sequence[Case], structures: Sequence[str] | None, sigmoid: bool, ignore_index: int | None
) -> Classes:
    """Find what the channels of these cases are, see `name_classes`."""
    channels, first = cases[0].channels, cases[0].prediction
    is_ours = first.files[0].name.startswith(f"{first.name}{PROBABILITY}.")
    return name_classes(channels, structures, sigmoid, ignore_index, with_background=is_ours)


def read_case(case: Case, classes: Classes, temperature: float | None = None) -> Saved:
    """Read a case that `find_cases` found, whose channels are what `classes_of` returned."""
    header, file = case.prediction.header(), case.prediction.files[0]
    codes, affine = read_label_map(case.label)
    label, other_codes = label_classes(codes, classes, case.label)
    other_predicted: list[int] = []
    if header.channels == 0:
        values, other_predicted = label_classes(
            read_label_map(file)[0], replace(classes, ignore_code=None), file
        )
        lowest, highest = 0.0, 1.0
    else:
        values, lowest, highest = case.prediction.probabilities(classes.sigmoid, classes.skip)
    if (turn := turn_of(header, file, Grid(affine, codes.shape, case.label))) is not None:
        values = np.stack([apply_orientation(channel, turn) for channel in values])
    if header.channels == 0:
        prediction = values[0]
    else:
        prediction = (
            paint(values > 0.5, classes) if classes.sigmoid else values.argmax(0).astype(np.uint8)
        )
    return Saved(
        label=torch.from_numpy(label),
        structures=classes.structures,
        probabilities=torch.from_numpy(values) if header.channels else None,
        prediction=torch.from_numpy(prediction),
        sigmoid=classes.sigmoid,
        ignore_index=IGNORED,
        temperature=temperature,
        spacing=tuple(map(float, voxel_sizes(affine))),
        voxel_volume=float(abs(np.linalg.det(affine[:3, :3])) / CUBIC_MM),
        lowest=lowest,
        highest=highest,
        affine=affine,
        other_codes=other_codes,
        other_predicted=other_predicted,
    )
