"""Quality of saved predictions without labels, from their probabilities."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from calib_components.errors import InputError, printable
from calib_components.quality import Reference, ScanEstimates
from calib_tools.parallel import map_cases
from calib_tools.predictions.cases import read_image, read_prediction
from calib_tools.predictions.classes import Classes
from calib_tools.predictions.formats import Prediction
from calib_workflows.data.nifti import Grid, open_nifti
from calib_workflows.evaluation_files import FILES
from calib_workflows.folders import OutputFolder, replacing
from calib_workflows.pages.quality import (
    FOLDER,
    TABLES,
    Review,
    describe_scan,
    draw_scan,
    write_record,
    write_table,
)


def estimate_quality(
    predictions: Mapping[str, Prediction],
    classes: Classes,
    images: Mapping[str, Path],
    output: OutputFolder,
    reference: Reference | None,
    review: Review,
    patients: Mapping[str, str],
    workers: int | None,
    left_out: list[str],
) -> None:
    """Write the table and the page of the quality of predictions.

    Args:
        predictions: Predictions by the names of their cases.
        classes: What their channels are.
        images: File of the image of each case, for pictures; empty without images.
        output: Folder of the table and the page.
        reference: Labelled validation cases, which give limits; None without them.
        review: Which predictions to list.
        patients: Patient of each case.
        workers: Number of processes.
        left_out: Is given why predictions cannot be read, which are left out.
    """
    if reference is None:
        reference = Reference.from_tensor(torch.empty(0), [*classes.structures])
    items = [(name, each, images.get(name)) for name, each in predictions.items()]
    # An evaluation with labels is never beside it
    files = [*FILES, *TABLES, *(f"{FOLDER}/{name}.json" for name in predictions)]
    output.check(files)
    with output.claim():
        with replacing(output.path, files, output.claim) as unfinished:
            estimate = functools.partial(
                _estimate_scan, classes=classes, reference=reference, out=unfinished
            )
            map_cases(estimate, items, workers, "estimate", left_out)
        print(printable(write_table(output.path, review, [*predictions], patients, left_out)))


def _estimate_scan(
    item: tuple[str, Prediction, Path | None], classes: Classes, reference: Reference, out: Path
) -> None:
    """Write the record of a prediction; where it has an image, on the grid of that."""
    name, prediction, file = item
    affine, grid, image = prediction.first.header().affine, None, None
    if file is not None:
        header, image = open_nifti(file), read_image(file)
        affine, grid = header.affine, Grid(header.affine, image.shape, file)
    values, *_, agreement = read_prediction(prediction, classes, grid)
    foreground = values if classes.sigmoid else values[1:]
    is_one = len(prediction.members) == 1  # several may agree
    if is_one and foreground.any() and not ((values > 0) & (values < 1)).any():
        raise InputError(
            f"{prediction.file}: all values are 0 or 1, as those of a label map. Save"
            " probabilities."
        )
    p = torch.from_numpy(values).permute(0, 3, 2, 1)  # slices first
    scan = ScanEstimates(classes.structures, classes.sigmoid)
    scan.update(p)
    shown = p[:, scan.most_uncertain_slice]
    grey = None if image is None else image[..., scan.most_uncertain_slice].T
    picture = draw_scan(scan, shown, grey, np.eye(4) if affine is None else affine)
    record = describe_scan(name, scan.compute(), reference, affine, picture, agreement)
    write_record(record, out)
