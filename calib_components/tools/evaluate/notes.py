"""Notes on each case, and warnings of likely mistakes in the files of all cases or in the options."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nibabel.orientations import apply_orientation

from calib_components.errors import InputError
from calib_components.inference.images import NIFTI
from calib_components.tools.evaluate.classes import IGNORED, Classes, label_classes
from calib_components.tools.evaluate.formats import SUM_SLACK, Header, is_label_map, read_label_map
from calib_components.tools.evaluate.pairs import Case, Saved, turn_onto

__all__ = ["check_notes", "note", "other_beside", "warn_of_other_beside"]

SHOWN = 5  # codes in a message
POSTPROCESSED = 0.05  # share of the voxels of structures that post-processing may change

Notes = Mapping[str, Any]


def note(case: Case, saved: Saved, classes: Classes) -> dict[str, Any]:
    """Note of a case what `check_notes` needs to know of all cases."""
    p = saved.probabilities
    notes = {
        "file": str(case.prediction.files[0]),
        "other_codes": list(saved.other_codes),
        "other_predicted": list(saved.other_predicted),
        "beside": other_beside(case, saved, classes),
        "is_unit": all(side == 1 for side in saved.spacing),
        "voxels": int((saved.label != IGNORED).sum()),
    }
    if p is None:
        return {**notes, "adds_up": False, "sums": []}
    slack = min(SUM_SLACK + len(p) * 2 * saved.lowest, 0.5)  # as a softmax is checked
    adds_up = len(p) > 1 and bool(((p.sum(0) - 1).abs() <= slack).all())
    return {**notes, "adds_up": adds_up, "sums": [channel.sum().item() for channel in p]}


def check_notes(records: Sequence[Mapping[str, Any]], classes: Classes, predictions: Path, labels: Path) -> None:
    """Check what only all cases together tell, and warn of likely mistakes."""
    logger, notes = logging.getLogger(__name__), [record["notes"] for record in records]
    if not any(noted["voxels"] for noted in notes):
        raise InputError(f"--ignore_index: all voxels of all labels have this code, {classes.ignore_code}.")
    present = set().union(*(noted["present"] for noted in notes))
    for name in filter(lambda name: name not in present, classes.structures):
        codes = sorted(set().union(*(classes.codes[channel] for channel in classes.structures[name])))
        logger.warning("%s: no label has %s, code %s. Check --structures.", labels, name, "+".join(map(str, codes)))
    for folder, key in ((labels, "other_codes"), (predictions, "other_predicted")):
        if codes := sorted(set().union(*(noted[key] for noted in notes))):
            shown = ", ".join(map(str, codes[:SHOWN])) + (f" and {len(codes) - SHOWN} more" if codes[SHOWN:] else "")
            number = sum(bool(noted[key]) for noted in notes)
            message = "%s: codes of no structure count as background: %s, in %d of %d label maps."
            logger.warning(message, folder, shown, number, len(notes))
    warn_of_other_beside(notes)
    if classes.sigmoid and all(noted["adds_up"] for noted in notes):
        message = "%s: channels add up to 1 in every voxel, as in a softmax. If they are classes, leave out --sigmoid."
        logger.warning(message, predictions)
    if classes.sigmoid:
        sums = [sum(of_channel) for of_channel in zip(*(noted["sums"] for noted in notes), strict=True)]
        for inner, outer in itertools.permutations(range(len(sums)), 2):
            if classes.codes[inner] < classes.codes[outer] and sums[inner] > sums[outer]:
                message = (
                    "%s: %s is a part of %s, but predicted larger. Name the channels of --structures in their order."
                )
                logger.warning(message, predictions, classes.names[inner], classes.names[outer])
                break
    if all(noted["is_unit"] for noted in notes):
        message = "%s: voxels are 1 x 1 x 1 mm in every header. If spacings were lost, mm and ml here are voxels."
        logger.warning(message, labels)


def other_beside(case: Case, saved: Saved, classes: Classes) -> tuple[int, int]:
    """Compare an array with the label map beside it, if there is one; a file with other codes may be the image.

    Returns the number of voxels with different classes in the two, and of those with a structure in either.
    """
    file = next((grid for grid in case.prediction.grids if NIFTI.fullmatch(grid.name)), None)
    if file is None or classes.sigmoid or not is_label_map(file):
        return 0, 0
    codes, affine = read_label_map(file)
    label_map, others = label_classes(codes, replace(classes, ignore_code=None, others_allowed=True), file)
    if others:
        return 0, 0
    prediction = saved.prediction.numpy()
    turn = turn_onto(Header(0, codes.shape, affine), saved.affine, prediction.shape, file, case.label)
    beside = label_map[0] if turn is None else apply_orientation(label_map[0], turn)
    return int((beside != prediction).sum()), int(((beside > 0) | (prediction > 0)).sum())


def warn_of_other_beside(notes: Sequence[Notes]) -> None:
    """Warn of label maps that are not those of the probabilities beside them, such as those of another run."""
    others, voxels = (sum(numbers) for numbers in zip(*(noted["beside"] for noted in notes), strict=True))
    if others > POSTPROCESSED * voxels:
        logging.getLogger(__name__).warning(
            "%s: the most probable class is not that of the label map beside it in %.0f %% of the voxels with a "
            "structure in all cases. The files may be of different runs, or axes in another order.",
            max(notes, key=lambda noted: noted["beside"][0])["file"], 100 * others / voxels,
        )  # fmt: skip
