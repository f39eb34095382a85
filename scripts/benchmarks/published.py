"""DSC, HD95, ECE, CECE, NLL and Brier score as published code computes them: from their
definitions, in NumPy and SciPy.

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


def region_masks(p: Array, label: Array, structures: Structures) -> dict[str, Array]:
    """Masks of the regions of an evaluation, at a temperature of 1, by the suffix of their
    columns.
    """
    prediction = p.argmax(0)
    masks = {
        "": label > 0,
        "all": np.ones(label.shape, bool),
        "predicted": prediction > 0,
        "plausible": 1 - p[0] > 0.05,
        "predicted_band": _band(prediction),
        "union": (label > 0) | (prediction > 0),
        "band": _band(label),
    }
    masks |= {f"structure_{name}": np.isin(label, classes) for name, classes in structures.items()}
    return {f"_{name}" if name else "": mask for name, mask in masks.items()}


def _band(classes: Array, radius: int = 2) -> Array:
    """Voxels at most a radius from a face between voxels of different classes."""
    found = np.zeros(classes.shape, bool)
    # From the voxel below the face
    offsets = np.abs(np.indices([2 * radius + 1] * classes.ndim) - radius)
    for axis in range(classes.ndim):
        distance = np.maximum(offsets - 0.5, 0)
        distance[axis] = np.abs(np.indices(distance[axis].shape)[axis] - radius - 0.5)
        faces = np.diff(classes, axis=axis, append=np.take(classes, [-1], axis)) != 0
        found |= ndimage.binary_dilation(faces, (distance**2).sum(0) <= radius**2)
    return found


def calibration_errors(
    p: Array, label: Array, masks: Mapping[str, Array], num_bins: int = 15
) -> dict[str, Any]:
    """ECE, CECE, NLL and Brier score in each region."""
    values: dict[str, Any] = {}
    for name, mask in masks.items():
        inside, true = p[:, mask], label[mask]
        one_hot = np.eye(len(p), dtype=p.dtype)[true].T
        values[f"ece{name}"] = _error(inside.max(0), inside.argmax(0) == true, num_bins)
        values[f"cece{name}"] = np.mean(
            [_error(inside[k], true == k, num_bins) for k in range(len(p))]
        )
        of_label = np.take_along_axis(inside, true[None], 0)
        values[f"nll{name}"] = -np.log(np.clip(of_label, np.finfo(np.float32).tiny, 1)).mean()
        values[f"brier{name}"] = np.sum((inside - one_hot) ** 2, 0).mean()
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
