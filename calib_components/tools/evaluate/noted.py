"""What is noted of each case that is evaluated, and what is warned of when all are."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from nibabel.orientations import apply_orientation

from calib_components.inference.images import NIFTI
from calib_components.tools.evaluate.classes import IGNORED, Classes, label_classes
from calib_components.tools.evaluate.formats import SUM_SLACK, Header, read_label_map, turn_onto
from calib_components.tools.evaluate.pairs import Case, Saved, is_label_map

__all__ = ["note", "other_beside", "warn", "warn_of_other_beside"]

SHOWN = 5  # codes in a message
POSTPROCESSED = 0.05  # share of the voxels of structures that post-processing may change


def note(case: Case, saved: Saved, classes: Classes) -> dict[str, Any]:
    """Note of a case what is to be said of all cases together."""
    p = saved.probabilities
    return {
        "other_codes": list(saved.other_codes),
        "other_predicted": list(saved.other_predicted),
        "other_beside": list(other_beside(case, saved, classes)),
        "is_unit": all(side == 1 for side in saved.spacing),
        "voxels": int((saved.label != IGNORED).sum()),
        # Where nothing is segmented, probabilities of exactly 0 are no sign of a label map.
        "is_hard": p is not None
        and bool(saved.prediction.any())
        and all(bool(((channel == 0) | (channel == 1)).all()) for channel in p),
        # As a softmax is checked; `lowest` is half the step of integers.
        "adds_up": p is not None
        and len(p) > 1
        and bool(((p.sum(0) - 1).abs() <= min(SUM_SLACK + len(p) * 2 * saved.lowest, 0.5)).all()),
        "sums": [] if p is None else [channel.sum().item() for channel in p],
    }


def warn(
    notes: Sequence[Mapping[str, Any]],
    cases: Sequence[Case],
    classes: Classes,
    counts: torch.Tensor,
    predictions: Path,
    labels: Path,
) -> None:
    """Warn of what is likely to be a mistake in the files of all cases, or in what was said of them.

    Args:
        notes: What `note` noted of each case.
        cases: The cases.
        classes: What their channels are.
        counts: Number of voxels of each structure in all labels, `(S,)`.
        predictions: Folder of the predictions, for messages.
        labels: Folder of the labels, likewise.
    """
    _warn_of_absent(counts, classes, labels)
    _warn_of_others(labels, [noted["other_codes"] for noted in notes])
    _warn_of_others(predictions, [noted["other_predicted"] for noted in notes])
    warn_of_other_beside([case.prediction.files[0] for case in cases], [noted["other_beside"] for noted in notes])
    _warn_of_hard([case.prediction.files[0] for case, noted in zip(cases, notes, strict=True) if noted["is_hard"]])
    if classes.sigmoid and all(noted["adds_up"] for noted in notes):
        logging.getLogger(__name__).warning(
            "%s: the channels add up to 1 in every voxel, so they look like a softmax, background first; if they are "
            "classes, leave out --sigmoid",
            predictions,
        )
    if classes.sigmoid:
        _warn_of_order(torch.tensor([noted["sums"] for noted in notes]).sum(0).tolist(), classes, predictions)
    if all(noted["is_unit"] for noted in notes):
        logging.getLogger(__name__).warning(
            "%s: every header says voxels of 1 x 1 x 1 mm; if headers lost their spacing, millimetres and millilitres "
            "here are voxels",
            labels,
        )


def other_beside(case: Case, saved: Saved, classes: Classes) -> tuple[int, int]:
    """Compare an array with the label map beside it, if there is one; a file with other codes may be the image.

    Args:
        case: What `find_cases` found.
        saved: What `read_case` read.
        classes: What the channels are.

    Returns:
        How many voxels have a class in one that they do not have in the other, and how many have a structure in either.

    Raises:
        InputError: The label map cannot be read, or its voxels are not those of the label.
    """
    file = next((grid for grid in case.prediction.grids if NIFTI.fullmatch(grid.name)), None)
    if file is None or classes.sigmoid or not is_label_map(file):
        return 0, 0
    codes, affine = read_label_map(file)
    label_map, others = label_classes(codes, replace(classes, ignore_code=None, others_allowed=True), file)
    if others:
        return 0, 0
    prediction = saved.prediction.numpy()
    turn = turn_onto(Header(0, codes.shape, affine), saved.affine, prediction.shape, (file, case.label))
    beside = label_map[0] if turn is None else apply_orientation(label_map[0], turn)
    return int((beside != prediction).sum()), int(((beside > 0) | (prediction > 0)).sum())


def warn_of_other_beside(files: Sequence[Path], found: Sequence[Sequence[int]]) -> None:
    """Warn of label maps that are not those of the probabilities beside them, such as those of another run.

    Args:
        files: File of the probabilities of each case.
        found: What `other_beside` returned.
    """
    others, voxels = (sum(numbers) for numbers in zip(*found, strict=True))
    if others > POSTPROCESSED * voxels:
        worst, _ = max(zip(files, found, strict=True), key=lambda pair: pair[1][0])
        logging.getLogger(__name__).warning(
            "%s: expected the most probable class to be that of the label map beside it, got another one in %.0f %% of "
            "the voxels with a structure in all cases; the files may be of different runs, or axes in another order",
            worst,
            100 * others / voxels,
        )


def _warn_of_order(sums: Sequence[float], classes: Classes, predictions: Path) -> None:
    """Warn of a structure that is predicted larger than one that contains it: the channels may be in another order."""
    for inner, outer in itertools.permutations(range(len(sums)), 2):
        if classes.codes[inner] < classes.codes[outer] and sums[inner] > sums[outer]:
            logging.getLogger(__name__).warning(
                "%s: %s, which is a part of %s by its codes, is predicted larger than it; --structures names the "
                "channels in their order",
                predictions,
                classes.names[inner],
                classes.names[outer],
            )
            return


def _warn_of_absent(counts: torch.Tensor, classes: Classes, labels: Path) -> None:
    """Warn of structures that no label has: their codes may be others in the files."""
    for name, voxels in zip(classes.structures, counts.tolist(), strict=True):
        if voxels == 0:
            codes = sorted(set().union(*(classes.codes[channel] for channel in classes.structures[name])))
            logging.getLogger(__name__).warning(
                "%s: no label has %s, code %s; --structures names the codes", labels, name, "+".join(map(str, codes))
            )


def _warn_of_others(folder: Path, of_cases: Sequence[Sequence[int]]) -> None:
    """Warn of codes in label maps that no structure has, such as one that was forgotten."""
    codes = sorted(set().union(*of_cases))
    if codes:
        shown = ", ".join(map(str, codes[:SHOWN])) + (f" and {len(codes) - SHOWN} more" if len(codes) > SHOWN else "")
        logging.getLogger(__name__).warning(
            "%s: %s, in %d of %d label maps, %s",
            folder,
            f"code {shown}" if len(codes) == 1 else f"codes {shown}",
            sum(map(bool, of_cases)),
            len(of_cases),
            "belongs to no structure and counts as background"
            if len(codes) == 1
            else "belong to no structure and count as background",
        )


def _warn_of_hard(files: Sequence[Path]) -> None:
    """Warn of predictions without any value between 0 and 1: they may be label maps."""
    if files:
        logging.getLogger(__name__).warning(
            "%s: every value is 0 or 1%s; if these are label maps, store them as integers without a scale factor; "
            "otherwise calibration says no more than how many voxels are wrong",
            files[0],
            f", as in {len(files) - 1} more" if len(files) > 1 else "",
        )
