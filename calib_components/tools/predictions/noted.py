"""What is noted of each case that is evaluated, and what is warned of when all are."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from calib_components.tools.predictions.classes import IGNORED, Classes
from calib_components.tools.predictions.formats import SUM_SLACK
from calib_components.tools.predictions.pairs import Case, Saved

__all__ = ["note", "warn"]

SHOWN = 5  # codes in a message


def note(saved: Saved) -> dict[str, Any]:
    """Note of a case what is to be said of all cases together."""
    p = saved.probabilities
    return {
        "other_codes": list(saved.other_codes),
        "other_predicted": list(saved.other_predicted),
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
