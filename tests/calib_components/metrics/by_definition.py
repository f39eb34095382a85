"""Regions, and calibration errors in them, by their definitions in numpy: slow, in float64, one
case at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

Array = NDArray[Any]
BINS = 15


def near(classes: Array, radius: float, spacing: Sequence[float] | None = None) -> Array:
    """Voxels within a distance of one of a class above 0."""
    if not (classes > 0).any():
        return np.zeros(classes.shape, bool)
    sampling = spacing or [1] * classes.ndim
    return distance_transform_edt(classes <= 0, sampling=sampling) <= radius + 1e-9


def inside(region: Any, p: Array, label: Array, ignored: Array | None = None) -> Array:
    """Mask of a region `(*S)` from probabilities `(N, *S)` and labels `(*S)`."""
    ignored = np.zeros(label.shape, bool) if ignored is None else ignored
    if region == "near":
        mask = near(np.where(ignored, -1, label), 5)
    elif isinstance(region, str):
        mask = {"all": label == label, "predicted": p.argmax(0) != 0, "foreground": label != 0}[
            region
        ]
    else:
        mask = np.isin(label, region)
    return mask & ~ignored


def bin_index(confidence: Array) -> Array:
    """Bins `(lo, hi]` of equal width."""
    return np.clip(np.digitize(confidence, np.arange(BINS + 1) / BINS, right=True), 1, BINS) - 1


def error(index: Array, confidence: Array, event: Array, weight: Array | None = None) -> float:
    """ECE: weights count voxels; a dimension before the voxels repeats them."""
    weight = np.ones(confidence.shape) if weight is None else weight
    index, confidence, event = (
        np.broadcast_to(x, weight.shape).ravel() for x in (index, confidence, event)
    )
    weight = weight.ravel()
    gaps = np.bincount(index, weight * confidence, BINS) - np.bincount(index, weight * event, BINS)
    return float(np.abs(gaps).sum() / weight.sum())


class Case:
    """A case `(N, *S)` without its ignored voxels, sorted into bins once."""

    def __init__(self, p: Array, kept: Array) -> None:
        self.p, self.kept = p, kept
        self.flat = p[:, kept]
        self.top, self.predicted = self.flat.max(0), self.flat.argmax(0)
        self.top_index, self.index = bin_index(self.top), bin_index(self.flat)

    def measures(self, label: Array, mask: Array) -> dict[str, float]:
        """ECE, CECE, NLL and Brier score of the voxels of a mask `(*S)`."""
        label, at = label[self.kept], mask[self.kept].nonzero()[0]
        p, label = self.flat[:, at], label[at]
        one_hot = np.arange(len(p))[:, None] == label
        of_classes = [error(self.index[k, at], p[k], one_hot[k]) for k in range(len(p))]
        return {
            "ece": error(self.top_index[at], self.top[at], self.predicted[at] == label),
            "cece": float(np.mean(of_classes)),
            "nll": float(-np.log(p[label, np.arange(len(at))]).mean()),
            "brier": float(((p - one_hot) ** 2).sum(0).mean()),
        }

    def errors_if_true(self, region: Any) -> dict[str, float]:
        """ECE and CECE if each label k has probability p_k: every voxel counts for each label, with
        weight p_k.
        """
        classes = np.arange(len(self.p))[:, None]
        inside_with = [
            inside(region, self.p, np.full(self.p.shape[1:], k))[self.kept] for k in classes
        ]
        weight = np.stack(inside_with) * self.flat
        of_classes = [
            error(self.index[j], self.flat[j], classes == j, weight) for j in range(len(classes))
        ]
        return {
            "ece": error(self.top_index, self.top, classes == self.predicted, weight),
            "cece": float(np.mean(of_classes)),
        }
