"""DSC, HD95, ECE, CECE and NLL as published code computes them: from their definitions, in NumPy
and SciPy.

One case at a time: probabilities `(N, *S)` and labels `(*S)`. Each function returns values by the
names of the columns of an evaluation, which for the region of the paper, the foreground, have no
suffix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[Any]
Structures = Mapping[str, Sequence[int]]
NEAR = 5  # voxels


def dice_scores(p: Array, label: Array, structures: Structures) -> dict[str, Any]:
    """DSC of the label map."""
    prediction = p.argmax(0)
    scores = {}
    for name, classes in structures.items():
        predicted, true = np.isin(prediction, classes), np.isin(label, classes)
        scores[f"dsc_{name}"] = 2 * np.sum(predicted & true) / (np.sum(predicted) + np.sum(true))
    return scores


def hausdorff_distances(p: Array, label: Array, structures: Structures) -> dict[str, Any]:
    """HD95 in voxels, as medpy computes it."""
    prediction = p.argmax(0)
    return {
        f"hd95_{name}": _hd95(np.isin(prediction, k), np.isin(label, k))
        for name, k in structures.items()
    }


def _hd95(predicted: Array, true: Array) -> float:
    """95th percentile of the distances between surfaces, by distance transforms."""
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (predicted, true)]
    to_predicted, to_true = (ndimage.distance_transform_edt(~surface) for surface in surfaces)
    return float(
        np.percentile(np.concatenate([to_true[surfaces[0]], to_predicted[surfaces[1]]]), 95)
    )


def region_masks(p: Array, label: Array) -> dict[str, Array]:
    """Masks of the regions of an evaluation, by the suffix of their columns."""
    return {
        "": label > 0,
        "_all": np.ones(label.shape, bool),
        "_predicted": p.argmax(0) > 0,
        "_near": ndimage.distance_transform_edt(label == 0) <= NEAR,
    }


def calibration_errors(p: Array, label: Array, num_bins: int = 15) -> dict[str, Any]:
    """ECE, CECE and NLL in the regions that an evaluation has them in."""
    values: dict[str, Any] = {}
    for name, mask in region_masks(p, label).items():
        inside, true = p[:, mask], label[mask]
        if name != "_near":
            values[f"ece{name}"] = _error(inside.max(0), inside.argmax(0) == true, num_bins)
        if name == "":
            errors = [_error(inside[k], true == k, num_bins) for k in range(len(p))]
            values["cece"] = np.mean(errors)
        else:
            of_label = np.take_along_axis(inside, true[None], 0)
            values[f"nll{name}"] = -np.log(np.clip(of_label, np.finfo(np.float32).tiny, 1)).mean()
    return values


def _error(confidence: Array, correct: Array, num_bins: int) -> float:
    edges = np.linspace(0, 1, num_bins + 1).tolist()
    edges[0] = -1  # a probability of 0 is in the first bin
    error = 0.0
    for low, high in pairwise(edges):
        in_bin = (confidence > low) & (confidence <= high)
        if in_bin.any():
            error += in_bin.mean() * abs(confidence[in_bin].mean() - correct[in_bin].mean())
    return error
