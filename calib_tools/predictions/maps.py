"""Maps of saved probabilities, such as nnU-Net's, as NIfTI files on the grid of their images."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch

from calib_components.errors import InputError, writing
from calib_tools.parallel import map_cases
from calib_tools.predictions.cases import read_prediction
from calib_tools.predictions.classes import PROBABILITY, Classes
from calib_tools.predictions.formats import Prediction
from calib_tools.predictions.pairing import UNCERTAINTY
from calib_workflows.folders import OutputFolder, replacing
from calib_workflows.inference.maps import normalized_entropy, rounded, write_map

AGREEMENT = "agreement.csv"
LABEL = "_seg"
LARGEST = 65535  # of the whole numbers that stand for 1


def names_of_maps(predictions: Mapping[str, Prediction]) -> set[str]:
    """Return the names of all files that `write_maps` may write."""
    maps = {
        f"{name}{ending}.nii.gz"
        for name in predictions
        for ending in (PROBABILITY, UNCERTAINTY, LABEL)
    }
    return {AGREEMENT, *maps}


def write_maps(
    predictions: Mapping[str, Prediction],
    classes: Classes,
    output: OutputFolder,
    workers: int | None,
) -> None:
    """Write the maps of each prediction: of several networks those of their mean, with a softmax
    its label map, and the mean DSC over pairs of them, by structure.
    """
    files = sorted(names_of_maps(predictions))
    output.check(files)
    with output.claim(), replacing(output.path, files, output.claim) as unfinished:
        write = functools.partial(_write_case, classes=classes, out=unfinished)
        rows = [*filter(None, map_cases(write, [*predictions.items()], workers, "map"))]
        if rows:
            pd.DataFrame(rows).to_csv(unfinished / AGREEMENT, index=False, lineterminator="\n")


def _write_case(
    item: tuple[str, Prediction], classes: Classes, out: Path
) -> dict[str, str | float] | None:
    """Write the maps of a case; return the row of its agreement, if it has several networks."""
    name, prediction = item
    affine = prediction.first.header().affine
    if affine is None:
        raise InputError(
            f"{prediction.file}: no file says where its voxels lie. Put {name}.nii.gz, the label"
            " map that nnU-Net writes, beside it."
        )
    stored = read_prediction(prediction, classes)
    p = torch.from_numpy(stored.values).float()
    uncertainty = _binary_entropy(p) if classes.sigmoid else normalized_entropy(p)
    maps = {PROBABILITY: p, UNCERTAINTY: uncertainty}
    for ending, values in maps.items():
        with writing(out / f"{name}{ending}.nii.gz") as unfinished:
            write_map(unfinished, rounded(values, torch.uint16), affine, 1 / LARGEST)
    if len(prediction.members) == 1:
        return None
    if not classes.sigmoid:
        codes = torch.tensor([min(each) for each in classes.codes])
        with writing(out / f"{name}{LABEL}.nii.gz") as unfinished:
            write_map(unfinished, codes[p.max(0, keepdim=True).indices].int(), affine)
    return {"case": name, **{key: round(dsc, 4) for key, dsc in stored.pairwise_dsc.items()}}


def _binary_entropy(p: torch.Tensor) -> torch.Tensor:
    """Return the mean over sigmoids of their entropy, from 0 to 1, `(1, X, Y, Z)`."""
    entropy = torch.special.entr(p) + torch.special.entr(1 - p)
    return entropy.mean(0, keepdim=True) / math.log(2)
