"""Cases read from their files: prediction, label and image on one grid."""

from __future__ import annotations

import functools
import logging
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation

from calib_components.errors import InputError, reading
from calib_components.metrics.case import Case
from calib_components.metrics.raters import RatedCase
from calib_components.quality import PairwiseDice, ScanEstimates
from calib_tools.parallel import map_cases
from calib_tools.predictions.classes import (
    Classes,
    combine_masks,
    label_classes,
    unnamed_codes,
)
from calib_tools.predictions.formats import SMALLEST, Prediction, Reader, Stored
from calib_tools.predictions.pairing import LabelledPrediction, find_turn
from calib_workflows.cases import Cases, LabelledCase, Result
from calib_workflows.data.facts import IGNORED
from calib_workflows.data.nifti import Grid, open_nifti, read_values, turn_onto, voxel_volume
from calib_workflows.data.overlap import content_of
from calib_workflows.inference.images import find_images

log = logging.getLogger(__name__)
MOST_ZEROS = 1e-5  # share of the voxels with a probability of 0 of their own label, in a fit
PREDICT_AGAIN = (
    "Predict again and save float32 probabilities, as inference.yaml and run_cases infer do with"
    " --bits 32"
)
Codes = Counter[int]  # the share of the voxels that a label code has; `|` takes the larger one


@dataclass(eq=False)
class SavedCase(LabelledCase):
    """A case read from its files.

    `unnamed` holds the label codes that are of no class, once `scan` was read, and the share of
    the voxels that each has, of several raters the largest.
    """

    pair: LabelledPrediction
    patient: str
    classes: Classes
    image_file: Path | None = None
    is_cropped: bool = False
    unnamed: Codes = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.name = self.pair.name
        if self.image_file is not None:
            self.image = torch.from_numpy(read_image(self.image_file, self.pair.grid()))

    @functools.cached_property
    def scan(self) -> Case:
        scan = read_case(self.pair, self.classes, self.unnamed)
        if self.is_cropped and scan.probabilities is not None:
            p = scan.probabilities
            foreground = p if self.classes.sigmoid else p[1:]
            for label in scan.labels():
                label.masked_fill_((foreground == 0).all(0), IGNORED)
        return scan

    @functools.cached_property
    def logits(self) -> torch.Tensor:
        """The logits of the probabilities, for a fit.

        Raises:
            InputError: The probabilities are stored so coarsely that what a 0 stands for decides a
                fit.
        """
        scan, file = self.scan, self.pair.prediction.file
        assert scan.probabilities is not None
        if scan.lowest > 2 * SMALLEST:
            raise InputError(
                f"{file}: integers or half precision are too coarse to fit a calibrator to."
                f" {PREDICT_AGAIN}."
            )
        share = max(_share_of_zeros(scan.probabilities, each) for each in self.labels)
        if share > MOST_ZEROS:
            raise InputError(
                f"{file}: the probability of what a voxel is labelled as is 0 in {share:.2g} of the"
                f" voxels, so no calibrator can be fitted. {PREDICT_AGAIN}; where a network has"
                " not seen the voxels, leave out their label with --ignore_index."
            )
        stored = Stored(scan.probabilities.numpy(), scan.lowest, scan.highest)
        return to_logits(stored, self.classes.sigmoid)

    @property
    def labels(self) -> list[torch.Tensor]:
        return self.scan.labels()

    @property
    def label_map(self) -> torch.Tensor:
        label = self.scan.label.numpy()
        if self.classes.sigmoid:
            return torch.from_numpy(combine_masks(label == 1, self.classes))
        return torch.from_numpy(np.where(label[0] == IGNORED, 0, label[0]))

    def members(self) -> dict[str, Case]:
        members = self.pair.prediction.members
        if len(members) == 1:
            return {}
        return {
            name: read_case(replace(self.pair, prediction=Prediction({name: member})), self.classes)
            for name, member in members.items()
        }


@dataclass(eq=False)
class SavedCases(Cases):
    """Saved predictions and their labels, which processes read, use and drop.

    Args:
        pairs: Their files.
        classes: What the channels of predictions are.
        patients: Patient of each case.
        images: File of the image of each case, for pictures; empty without images.
        workers: Number of processes; None for one per core, at most 8.
        is_cropped: Whether to ignore voxels of certain background, which lie outside of what the
            network saw.
        left_out: Is given why cases cannot be measured, which are left out then; None to refuse
            them.
    """

    pairs: Sequence[LabelledPrediction]
    classes: Classes
    patients: Mapping[str, str]
    images: Mapping[str, Path] = field(default_factory=dict)
    workers: int | None = None
    is_cropped: bool = False
    left_out: list[str] | None = None
    has_told: bool = False  # of label codes of no class

    def map(self, function: Callable[[LabelledCase], Result]) -> list[Result]:
        items = [
            (pair, self.patients[pair.name], self.images.get(pair.name)) for pair in self.pairs
        ]
        use = functools.partial(
            _use, function=function, classes=self.classes, is_cropped=self.is_cropped
        )
        used = map_cases(use, items, self.workers, flaws=self.left_out)
        self._tell_unnamed([unnamed for _, unnamed in used])
        return [result for result, _ in used]

    def _tell_unnamed(self, of_cases: Sequence[Codes]) -> None:
        """Warn, once, of label codes that are of no structure."""
        unnamed = [each for each in of_cases if each]
        if not unnamed or self.has_told:
            return
        self.has_told = True
        largest = functools.reduce(operator.or_, unnamed)
        shares = [
            f"{code} (up to {100 * largest[code]:.2g} % of a case)" for code in sorted(largest)
        ]
        log.warning(
            "Label codes of no structure, in %d case(s), count as background: %s. To leave the"
            " voxels of one out, pass it as --ignore_index.",
            len(unnamed),
            ", ".join(shares),
        )


def _use(
    item: tuple[LabelledPrediction, str, Path | None],
    function: Callable[[LabelledCase], Result],
    classes: Classes,
    is_cropped: bool,
) -> tuple[Result, Codes]:
    pair, patient, image = item
    with reading(pair.prediction.file, "a prediction that can be measured"):
        case = SavedCase(pair, patient, classes, image, is_cropped)
        return function(case), case.unnamed


def _share_of_zeros(p: torch.Tensor, label: torch.Tensor) -> float:
    """Return the share of the voxels where a class of the label `(1, *S)`, or a sigmoid of labels
    `(N, *S)`, has a probability of 0.
    """
    if len(label) == len(p):
        wrong = ((p == 0) & (label == 1)) | ((p == 1) & (label == 0))
    else:
        wrong = (p == 0) & (label == torch.arange(len(p)).view(-1, 1, 1, 1))
    return float(wrong.any(0).float().mean())


def to_logits(stored: Stored, sigmoid: bool) -> torch.Tensor:
    """Return logits `(C, X, Y, Z)` of stored probabilities.

    Logarithms of probabilities are the logits, up to one number for each voxel, which softmax
    ignores.
    """
    p = torch.from_numpy(stored.values)
    if sigmoid:
        return p.clamp(stored.lowest, stored.highest).logit()
    return p.clamp_min(stored.lowest).log()


def read_case(pair: LabelledPrediction, classes: Classes, unnamed: Codes | None = None) -> Case:
    """Read a case to measure on the voxels of its label, in mm and ml; with labels of named raters,
    a `RatedCase`. `unnamed` gets the label codes that are of no class, see `SavedCase`.

    Its `prediction` is uint8 `(X, Y, Z)`, the most probable class, or the class of a label map;
    with sigmoid channels, what `combine_masks` makes of those above 0.5.
    """
    grid, unnamed = pair.grid(), Counter() if unnamed is None else unnamed
    stored = read_prediction(pair.prediction, classes, grid)
    is_label_map = pair.prediction.is_label_map
    cases = {
        rater: Case(
            label=torch.from_numpy(_read_label(reader, classes, grid, unnamed)),
            structures=classes.structures,
            probabilities=None if is_label_map else torch.from_numpy(stored.values),
            prediction=torch.from_numpy(_predicted_classes(stored.values, classes)),
            sigmoid=classes.sigmoid,
            ignore_index=IGNORED,
            spacing=tuple(map(float, voxel_sizes(grid.affine))),
            voxel_volume=voxel_volume(grid.affine),
            lowest=stored.lowest,
            highest=stored.highest,
            pairwise_dsc=stored.pairwise_dsc,
        )
        for rater, reader in pair.labels.items()
    }
    return cases[""] if "" in cases else RatedCase.of(cases)


def _read_label(reader: Reader, classes: Classes, grid: Grid, unnamed: Codes) -> np.ndarray:
    codes = reader.label_codes(len(classes.codes) - (not classes.sigmoid) > 1)
    unnamed |= Counter(unnamed_codes(codes, classes))
    return _turned(label_classes(codes, classes, reader.file), find_turn(reader, grid))


def read_prediction(prediction: Prediction, classes: Classes, grid: Grid | None = None) -> Stored:
    """Read the probabilities `(C, X, Y, Z)` of a prediction, or the classes `(1, X, Y, Z)` of a
    label map, on a grid whose axes may be in another order; None: on its own.

    Those of several networks are averaged, one after the other; label maps are votes.
    """
    first = prediction.first
    if len(prediction.members) == 1:
        return _read_member(first, classes, grid)
    header = first.header()
    if grid is None and header.affine is not None:
        grid = Grid(header.affine, header.shape, first.file)
    count, scan = len(prediction.members), ScanEstimates(classes.structures, classes.sigmoid)
    mean, limits, masks = np.empty(0), np.zeros(2), []
    for number, member in enumerate(prediction.members.values()):
        stored = _read_member(member, classes, grid)
        if member.is_label_map:
            stored = _votes(stored, count, classes)
        if number == 0:
            mean = np.zeros_like(stored.values)
        if mean.shape != stored.values.shape:
            raise InputError(f"{member.file}: its shape is not that of {first.file}.")
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
        one_hot = np.eye(len(classes.codes), dtype=np.float32)
        values = np.moveaxis(one_hot[stored.values[0]], -1, 0)
    return Stored(values, 0.5 / count, 1 - 0.5 / count)


def _read_member(reader: Reader, classes: Classes, grid: Grid | None) -> Stored:
    if reader.is_label_map:
        every_code = replace(classes, ignore_code=None)
        codes = reader.label_codes()
        stored = Stored(label_classes(codes, every_code, reader.file), 0.0, 1.0)
    else:
        stored = reader.probabilities(classes.sigmoid, classes.skip)
    turn = None if grid is None else find_turn(reader, grid)
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


def content_of_prediction(prediction: Prediction, classes: Classes) -> str:
    """Return the `content_of` the classes that are predicted."""
    values = read_prediction(prediction, classes).values
    return content_of(torch.from_numpy(_predicted_classes(values, classes))[None])


def find_case_images(folder: Path, cases: Iterable[str]) -> dict[str, Path]:
    """Find the image of each case in a folder: NAME, or NAME_0000, nnU-Net's first channel."""
    if not folder.is_dir():
        raise InputError(f"--images: {folder}: no such folder.")
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
