"""Cases read from their files: prediction, label and image on one grid; checks of all cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation

from calib_components.errors import InputError
from calib_components.metrics.measures import Case
from calib_components.metrics.raters import RatedCase
from calib_components.quality import PairwiseDice, ScanEstimates
from calib_tools.predictions.classes import (
    IGNORED,
    Classes,
    combine_masks,
    label_classes,
)
from calib_tools.predictions.formats import Prediction, Reader, Stored
from calib_tools.predictions.pairing import LabelledPrediction, find_turn
from calib_workflows.data.nifti import Grid, open_nifti, read_values, turn_onto
from calib_workflows.inference.images import find_images

CUBIC_MM = 1000  # in a millilitre


@dataclass(frozen=True)
class Setting:
    """What the cases of an evaluation share.

    Attributes:
        out: Folder of the results.
        classes: What the channels of predictions are.
        patients: Patient of each case.
        images: File of the image of each case, for pictures; empty without images.
        workers: Number of processes.
        overwrite: Whether results of other inputs or options there are replaced.
        run: Inputs and options by name, which the folder records.
    """

    out: Path
    classes: Classes
    patients: Mapping[str, str]
    images: Mapping[str, Path]
    workers: int | None
    overwrite: bool
    run: Mapping[str, Any]

    def items(self) -> list[dict[str, str]]:
        """Return the cases as `calib_workflows.data.overlap` compares them."""
        return [{"case": case, "patient": patient} for case, patient in self.patients.items()]


def read_case(pair: LabelledPrediction, classes: Classes, temperature: float | None = None) -> Case:
    """Read a case to measure on the voxels of its label, in mm and ml; with labels of named raters,
    a `RatedCase`.

    Its `prediction` is uint8 `(X, Y, Z)`, the most probable class, or the class of a label map;
    with sigmoid channels, what `combine_masks` makes of those above 0.5.
    """
    grid = pair.grid()
    stored = read_prediction(pair.prediction, classes, grid)
    is_label_map = pair.prediction.is_label_map
    cases = {
        rater: Case(
            label=torch.from_numpy(_read_label(reader, classes, grid)),
            structures=classes.structures,
            probabilities=None if is_label_map else torch.from_numpy(stored.values),
            prediction=torch.from_numpy(_predicted_classes(stored.values, classes)),
            sigmoid=classes.sigmoid,
            ignore_index=IGNORED,
            temperature=temperature,
            spacing=tuple(map(float, voxel_sizes(grid.affine))),
            voxel_volume=float(abs(np.linalg.det(grid.affine[:3, :3])) / CUBIC_MM),
            lowest=stored.lowest,
            highest=stored.highest,
            pairwise_dsc=stored.pairwise_dsc,
        )
        for rater, reader in pair.labels.items()
    }
    return cases[""] if "" in cases else RatedCase.of(cases)


def _read_label(reader: Reader, classes: Classes, grid: Grid) -> np.ndarray:
    label = label_classes(reader.label_codes(), classes, reader.files[0])
    return _turned(label, find_turn(reader, grid))


def read_prediction(prediction: Prediction, classes: Classes, grid: Grid | None = None) -> Stored:
    """Read the probabilities `(C, X, Y, Z)` of a prediction, or the classes `(1, X, Y, Z)` of a
    label map, on a grid whose axes may be in another order; None: on its own.

    Those of several networks are averaged, one after the other; label maps are votes.
    """
    if len(prediction.members) == 1:
        return _read_member(prediction.members[0], classes, grid)
    header = prediction.header()
    if grid is None and header.affine is not None:
        grid = Grid(header.affine, header.shape, prediction.files[0])
    count, scan = len(prediction.members), ScanEstimates(classes.structures, classes.sigmoid)
    mean, limits, masks = np.empty(0), np.zeros(2), []
    for number, member in enumerate(prediction.members):
        stored = _read_member(member, classes, grid)
        if member.is_label_map:
            stored = _votes(stored, count, classes)
        if number == 0:
            mean = np.zeros_like(stored.values)
        if mean.shape != stored.values.shape:
            raise InputError(f"{member.files[0]}: its shape is not that of {prediction.files[0]}.")
        mean += stored.values
        limits += stored.lowest, stored.highest
        masks.append(scan.masks(torch.from_numpy(stored.values)))
    mean /= count
    pairs = PairwiseDice(classes.structures)
    for number, name in enumerate(classes.structures):
        pairs.add(name, torch.stack([of_member[number] for of_member in masks]))
    lowest, highest = (limits / count).tolist()
    return Stored(mean, lowest, highest, pairs.compute())


def _votes(stored: Stored, count: int, classes: Classes) -> Stored:
    """Return the vote of one of several label maps: probabilities of 0 or 1. Of their mean, half a
    vote takes the place of 0.
    """
    values = stored.values.astype(np.float32)
    if not classes.sigmoid:
        values = np.moveaxis(np.eye(len(classes.codes), dtype=np.float32)[stored.values[0]], -1, 0)
    return Stored(values, 0.5 / count, 1 - 0.5 / count)


def _read_member(prediction: Reader, classes: Classes, grid: Grid | None) -> Stored:
    if prediction.is_label_map:
        every_code = replace(classes, ignore_code=None)
        codes = prediction.label_codes()
        stored = Stored(label_classes(codes, every_code, prediction.files[0]), 0.0, 1.0)
    else:
        stored = prediction.probabilities(classes.sigmoid, classes.skip)
    turn = None if grid is None else find_turn(prediction, grid)
    return stored._replace(values=_turned(stored.values, turn))


def _turned(values: np.ndarray, turn: np.ndarray | None) -> np.ndarray:
    """Return `(C, X, Y, Z)` with its axes turned, see `find_turn`."""
    if turn is None:
        return values
    return np.stack([apply_orientation(channel, turn) for channel in values])


def _predicted_classes(values: np.ndarray, classes: Classes) -> np.ndarray:
    if classes.sigmoid:
        return combine_masks(values > 0.5, classes)
    if len(values) == 1:  # the classes of a label map
        return values[0]
    return values.argmax(0).astype(np.uint8)


def find_case_images(folder: Path, cases: Iterable[str]) -> dict[str, Path]:
    """Find the image of each case in a folder: NAME, or NAME_0000, nnU-Net's first channel."""
    files: dict[str, list[Path]] = {}
    for image in find_images(folder):
        files.setdefault(image.name, []).append(image.files[0])
    images = {}
    for case in cases:
        found = [*files.get(case, []), *files.get(f"{case}_0000", [])]
        if len(found) > 1:
            raise InputError(
                f"{found[0]} and {found[1]} may both be the image of {case}. Give --images the"
                " folder of one of them."
            )
        if not found:
            raise InputError(f"{folder}: no image is called {case} or {case}_0000.")
        images[case] = found[0]
    return images


def read_image(file: Path, grid: Grid | None = None) -> np.ndarray:
    """Read the grey values `(X, Y, Z)` of an image, of its first channel, on a grid whose axes may
    be in another order; None: on its own.
    """
    image = open_nifti(file)
    values = read_values(image, file).reshape(*image.shape[:3], -1)[..., 0]
    turn = None if grid is None else turn_onto(Grid(image.affine, values.shape, file), grid)
    return values.copy() if turn is None else apply_orientation(values, turn).copy()


def count_agreement(case: Case) -> list[list[int]]:
    """Count voxels of background, and of structures: all, those that are right, and those that
    would be if the last channel of the softmax were the background.
    """
    assert case.prediction is not None
    if case.probabilities is None or case.sigmoid:
        return [[0, 0, 0], [0, 0, 0]]
    label, prediction = case.label[0], case.prediction
    moved = (prediction.int() + 1) % len(case.probabilities)
    background, structures = label == 0, (label > 0) & (label != IGNORED)
    return [
        [int((part & right).sum()) for right in (part, prediction == label, moved == label)]
        for part in (background, structures)
    ]


def check_background(counts: Sequence[list[list[int]]], file: Path) -> None:
    """Raise `InputError`, which names a file, if the background is the last channel: a network that
    is merely bad never looks like this.

    Args:
        counts: What `count_agreement` returned for each case.
        file: A prediction.
    """
    voxels, right, moved = np.sum(counts, 0).T
    if (right < voxels / 4).all() and (moved > voxels * [0.75, 0.5]).all():
        raise InputError(
            f"{file}: the background seems to be the last channel:"
            f" {right.sum() / voxels.sum():.0%} of all voxels are right, but"
            f" {moved.sum() / voxels.sum():.0%} if it were the first. Save the background first."
        )
