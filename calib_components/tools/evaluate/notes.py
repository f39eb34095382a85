"""Notes on each case, and warnings of likely mistakes in the files of all cases or in the options."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel.orientations import apply_orientation

from calib_components.data.nifti import Grid, turn_onto
from calib_components.errors import InputError
from calib_components.inference.images import NIFTI
from calib_components.tools.evaluate.classes import IGNORED, Classes, label_classes
from calib_components.tools.evaluate.formats import is_label_map, read_label_map
from calib_components.tools.evaluate.pairs import Case, Saved, listed

POSTPROCESSED = 0.05  # share of the voxels of structures that post-processing may change
ROUNDING = 1e-6  # of probabilities that nnU-Net saved in float32

Notes = Mapping[str, Any]


def note(case: Case, saved: Saved, classes: Classes) -> dict[str, Any]:
    """Note of a case what `check_notes` needs to know of all cases."""
    notes = {
        "file": str(case.prediction.files[0]),
        "present": [
            name
            for name, mask in zip(classes.structures, saved.masks[1][0], strict=True)
            if mask.any()
        ],
        "other_codes": list(saved.other_codes),
        "other_predicted": list(saved.other_predicted),
        "beside": other_beside(case, saved, classes),
        "right": count_right(saved),
        "is_unit": saved.spacing == (1, 1, 1),
    }
    if saved.probabilities is not None:
        notes["sums"] = [channel.sum().item() for channel in saved.probabilities]
    return notes


def check_notes(
    records: Sequence[Mapping[str, Any]], classes: Classes, predictions: Path, labels: Path
) -> None:
    """Check what only all cases together tell, and warn of likely mistakes."""
    logger, notes = logging.getLogger(__name__), [record["notes"] for record in records]
    check_background(notes)
    present = set().union(*(note["present"] for note in notes))
    for name in filter(lambda name: name not in present, classes.structures):
        codes = sorted(
            set().union(*(classes.codes[channel] for channel in classes.structures[name]))
        )
        logger.warning(
            "%s: no label has %s, code %s. Check --structures.",
            labels,
            name,
            "+".join(map(str, codes)),
        )
    for folder, key in ((labels, "other_codes"), (predictions, "other_predicted")):
        if codes := sorted(set().union(*(note[key] for note in notes))):
            number = sum(bool(note[key]) for note in notes)
            message = "%s: codes of no structure count as background: %s, in %d of %d label maps."
            logger.warning(message, folder, listed(codes), number, len(notes))
    warn_of_other_beside(notes)
    if classes.sigmoid:
        sums = np.sum([note["sums"] for note in notes], 0)
        for inner, outer in itertools.permutations(range(len(sums)), 2):
            if classes.codes[inner] < classes.codes[outer] and sums[inner] > sums[outer]:
                names = classes.names[inner], classes.names[outer]
                message = (
                    "%s: %s is a part of %s, but predicted larger. Name --structures in the order"
                    " of channels."
                )
                logger.warning(message, predictions, *names)
                break
    if all(note["is_unit"] for note in notes):
        message = (
            "%s: voxels are 1 x 1 x 1 mm in every header. If spacings were lost, mm and ml here are"
            " voxels."
        )
        logger.warning(message, labels)


def count_right(saved: Saved) -> list[list[int]]:
    """Count voxels of background and of structures: all, right ones, and right ones with the last
    channel first.
    """
    channels = 0 if saved.probabilities is None or saved.sigmoid else len(saved.probabilities)
    label, moved = saved.label[0], (saved.prediction.int() + 1) % max(channels, 1)
    parts = (label == 0, (label > 0) & (label != IGNORED) & (channels > 0))
    return [
        [int((part & right).sum()) for right in (part, saved.prediction == label, moved == label)]
        for part in parts
    ]


def check_background(notes: Sequence[Notes]) -> None:
    """Check that the background is not the last channel: a network that is merely bad never looks
    like this.
    """
    voxels, right, moved = np.sum([note["right"] for note in notes], 0).T
    if (right < voxels / 4).all() and (moved > voxels * [0.75, 0.5]).all():
        raise InputError(
            f"{notes[0]['file']}: the background seems to be the last channel:"
            f" {right.sum() / voxels.sum():.0%} of all voxels are right, but"
            f" {moved.sum() / voxels.sum():.0%} if it were the first. Save the background first."
        )


def other_beside(case: Case, saved: Saved, classes: Classes) -> tuple[int, int]:
    """Compare an array with the label map beside it, if there is one; a file with other codes may
    be the image.

    Returns the number of voxels whose class in the label map is not the most probable one, up to
    rounding, and of those with a structure in either.
    """
    file = next((grid for grid in case.prediction.grids if NIFTI.fullmatch(grid.name)), None)
    if file is None or classes.sigmoid or not is_label_map(file):
        return 0, 0
    codes, affine = read_label_map(file)
    label_map, others = label_classes(
        codes, replace(classes, ignore_code=None, others_allowed=True), file
    )
    if others:
        return 0, 0
    turn = turn_onto(
        Grid(affine, codes.shape, file),
        Grid(saved.affine, tuple(saved.prediction.shape), case.label),
    )
    if turn is not None:
        label_map = apply_orientation(label_map[0], turn)[None].copy()
    assert saved.probabilities is not None
    beside = torch.from_numpy(label_map).long()
    is_other = saved.probabilities.amax(0) - saved.probabilities.gather(0, beside)[0] > ROUNDING
    return int(is_other.sum()), int(((beside[0] > 0) | (saved.prediction > 0)).sum())


def warn_of_other_beside(notes: Sequence[Notes]) -> None:
    """Warn of label maps that are not those of the probabilities beside them, such as those of
    another run.
    """
    others, voxels = np.sum([note["beside"] for note in notes], 0)
    if others > POSTPROCESSED * voxels:
        logging.getLogger(__name__).warning(
            "%s: the most probable class is not that of the label map beside it in %.0f %% of the voxels with a "
            "structure in all cases. The files may be of different runs, or axes in another order.",
            max(notes, key=lambda note: note["beside"][0])["file"], 100 * others / voxels,
        )  # fmt: skip
