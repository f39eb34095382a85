"""Quality of saved predictions without labels, from their probabilities."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import torch

from calib_components.errors import InputError, printable
from calib_components.quality import Reference, ScanEstimates
from calib_tools.parallel import map_cases
from calib_tools.predictions.cases import Setting, read_image, read_prediction
from calib_tools.predictions.formats import Prediction
from calib_workflows.data.nifti import Grid, open_nifti
from calib_workflows.evaluation_files import FILES
from calib_workflows.folders import OutputFolder
from calib_workflows.pages.quality import draw_slice
from calib_workflows.pages.table import (
    FOLDER,
    TABLES,
    choose,
    describe_scan,
    write_record,
    write_table,
)


def estimate_quality(
    predictions: Mapping[str, Prediction],
    setting: Setting,
    reference: Reference | None,
    review: str,
    review_below: float | None,
) -> None:
    """Write the table and the page of the quality of predictions.

    Args:
        predictions: Predictions by the names of their cases.
        setting: What they share.
        reference: Labelled validation cases, which give limits; None without them.
        review: Share of the predictions to list.
        review_below: Expected DSC below which predictions are listed, in place of a share.
    """
    choose([], review, review_below)
    if reference is None:
        reference = Reference.from_tensor(torch.empty(0), [*setting.classes.structures])
    estimate = functools.partial(_estimate_scan, setting=setting, reference=reference)
    out = OutputFolder(setting.out, setting.run, overwrite=setting.overwrite)
    # No evaluation with labels is beside it
    with out.claim([*FILES, *TABLES, *(f"{FOLDER}/{name}.json" for name in predictions)]):
        map_cases(estimate, [*predictions.items()], setting.workers, "estimate")
        print(printable(write_table(setting.out, review, review_below, [*predictions])))


def _estimate_scan(
    named_prediction: tuple[str, Prediction], setting: Setting, reference: Reference
) -> None:
    """Write the record of a prediction; where it has an image, on the grid of that."""
    name, prediction = named_prediction
    affine, grid, image = prediction.header().affine, None, None
    if name in setting.images:
        file = setting.images[name]
        header, image = open_nifti(file), read_image(file)
        affine, grid = header.affine, Grid(header.affine, image.shape, file)
    values, *_, agreement = read_prediction(prediction, setting.classes, grid)
    foreground = values if setting.classes.sigmoid else values[1:]
    is_one = len(prediction.members) == 1  # several may agree
    if is_one and foreground.any() and not ((values > 0) & (values < 1)).any():
        raise InputError(
            f"{prediction.files[0]}: all values are 0 or 1, as those of a label map. Save"
            " probabilities."
        )
    p = torch.from_numpy(values).permute(0, 3, 2, 1)  # slices first
    scan = ScanEstimates(setting.classes.structures, setting.classes.sigmoid)
    scan.update(p)
    shown = p[:, scan.most_uncertain_slice]
    picture = draw_slice(
        None if image is None else image[..., scan.most_uncertain_slice].T,
        torch.stack(scan.masks(shown)),
        scan.uncertainty(shown),
        np.eye(4) if affine is None else affine,
    )
    record = describe_scan(name, scan.compute(), reference, affine, picture, agreement)
    rows = [(row["expected_dsc"], row["expected_volume_ml"]) for row in record["rows"]]
    is_same = np.isclose(reference.values[..., [1, 3]], np.array(rows, float))
    if is_same.all((1, 2)).any():
        raise InputError(
            f"--validation: {prediction.files[0]} is one of the predictions there, by its expected"
            " DSC and volumes. Give an evaluation of other patients."
        )
    write_record(record, setting.out)
