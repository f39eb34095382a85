"""The quality of saved predictions that have no labels, from their probabilities."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from nibabel.orientations import apply_orientation

from calib_components.data.nifti import Grid, open_nifti, read_values
from calib_components.errors import InputError, check_output
from calib_components.inference.images import shard_of
from calib_components.quality import Reference, ScanEstimates, describe_scan, draw_slice, write_record, write_table
from calib_components.quality.table import FOLDER, choose
from calib_components.tools.evaluate.classes import Classes
from calib_components.tools.evaluate.pairs import Case, find_predictions, turn_of
from calib_components.tools.parallel import map_cases


def find_unlabelled(predictions: Path) -> list[Case]:
    """Find the predictions of a folder, see `find_predictions`, all probabilities of the same number of channels."""
    found = find_predictions(predictions)
    cases = [Case(name, own, own.files[0], own.header().channels) for name, own in found.items()]
    for case in cases:
        if case.channels == 0:
            raise InputError(
                f"{case.label} is a label map. Quality is estimated from probabilities: save those, or give labels."
            )
        if case.channels != cases[0].channels:
            raise InputError(f"{case.label} has {case.channels} channels, {cases[0].label} has {cases[0].channels}.")
    return cases


def estimate_quality(
    cases: list[Case],
    out: Path,
    classes: Classes,
    reference: Reference | None,
    images: Mapping[str, Path],
    review: str,
    review_below: float | None,
    workers: int | None,
    shard: str | None,
    overwrite: bool,
) -> None:
    """Write `quality.csv` and `quality.html` of these cases; for the options, see `evaluate_predictions`."""
    choose([], review, review_below)
    check_output(out, FOLDER, overwrite)
    if shard is None:  # no scans of an earlier run
        shutil.rmtree(out / FOLDER, ignore_errors=True)
    known = reference or Reference.from_tensor(torch.empty(0), [*classes.structures])
    measure = functools.partial(_measure, out=out, classes=classes, reference=known, images=images)
    map_cases(measure, shard_of(cases, shard), workers, "estimate")
    write_table(out, review, review_below)


def _measure(case: Case, out: Path, classes: Classes, reference: Reference, images: Mapping[str, Path]) -> None:
    header, file = case.prediction.header(), images.get(case.name)
    values, affine, grey = case.prediction.probabilities(classes.sigmoid, classes.skip).values, header.affine, None
    if file is not None:
        image = open_nifti(file)
        if (turn := turn_of(header, case.label, Grid(image.affine, image.shape[:3], file))) is not None:
            values = np.stack([apply_orientation(channel, turn) for channel in values])
        affine, grey = image.affine, read_values(image, file).reshape(*image.shape[:3], -1)[..., 0]
    p, scan = torch.from_numpy(values).permute(0, 3, 2, 1), ScanEstimates(classes.structures, classes.sigmoid)
    scan.update(p)
    index = scan.most_uncertain_slice
    shown, structures = p[:, index], [*classes.structures.values()]
    inside = [
        shown[of[0]] > 0.5 if classes.sigmoid else torch.isin(shown.argmax(0), torch.tensor(of)) for of in structures
    ]
    probable = shown.amax(0) if classes.sigmoid else 1 - shown[0]
    picture = draw_slice(
        probable if grey is None else grey[..., index].T, torch.stack(inside), np.eye(4) if affine is None else affine
    )
    write_record(describe_scan(case.name, scan.compute(), reference, affine, picture), out)
