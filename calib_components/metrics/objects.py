"""Objects of a structure, such as lesions: connected components of prediction and ground truth.

A candidate is a component, over corners too, of the voxels whose probability is at least a
threshold; its confidence is the largest one. A candidate is right if it shares a voxel with a true
object, or has some IoU with it. Then that object is found, once, however many candidates touch it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from calib_components.errors import check_number
from calib_components.metrics.case import Case

CANDIDATE, TRUE_OBJECT = "candidate", "true object"


class FoundObject(NamedTuple):
    """A candidate or a true object: its volume, in the unit of `Case.voxel_volume`, and confidence,
    whether it is right or found, and the voxel in the middle of its box, such as `12 40 7`.
    """

    kind: str
    volume: float
    confidence: float
    matched: bool
    place: str

    @property
    def is_missed(self) -> bool:
        """Whether it is a true object that no candidate finds."""
        return self.kind == TRUE_OBJECT and not self.matched


def find_objects(
    case: Case, structure: str, threshold: float = 0.5, overlap: float = 0.0
) -> list[FoundObject]:
    """Match the objects of a structure in a case; of one that several raters labelled, with the
    label of most of them. Ignored voxels are in none.

    Args:
        case: The case, of which what is predicted as the structure counts if it is a label map.
        structure: Name of the structure.
        threshold: Lowest probability of a voxel in a candidate, above 0.
        overlap: Lowest IoU of a right candidate with a true object; 0 asks for one voxel.

    Returns:
        Candidates, then true objects. The confidence of a true object is that of its most confident
            right candidate, 0 without one; in label maps, it is 1.

    Examples:
        >>> import torch
        >>> p, label = torch.tensor([[0.9, 0.6, 0, 0.7, 0]]), torch.tensor([[0, 1, 0, 0, 1]])
        >>> case = Case(label, {"lesion": [0]}, p, sigmoid=True)
        >>> for kind, volume, confidence, matched, place in find_objects(case, "lesion"):
        ...     print(kind, volume, round(confidence, 1), matched, place)
        candidate 2.0 0.9 True 0
        candidate 1.0 0.7 False 3
        true object 1.0 0.9 True 1
        true object 1.0 0.0 False 4
    """
    check_number("threshold", threshold, 1e-6, 1)
    number = [*case.structures].index(structure)
    predicted, true = (masks[0, number].cpu().numpy() for masks in case.masks)
    p, neighbours = predicted, np.ones([3] * true.ndim)
    if case.probabilities is not None:
        probabilities = case.probabilities[[*case.structures[structure]]].sum(0)
        p = (probabilities * case.counted).cpu().numpy()
    candidates, truths = (ndimage.label(mask, neighbours)[0] for mask in (p >= threshold, true))
    sizes = np.bincount(truths[truths > 0], minlength=1)
    confidences = np.zeros(len(sizes))
    rows: list[FoundObject] = []
    for candidate, box in enumerate(ndimage.find_objects(candidates), 1):
        inside = candidates[box] == candidate
        size, confidence = int(inside.sum()), float(p[box][inside].max())
        touched, common = np.unique(truths[box][inside & (truths[box] > 0)], return_counts=True)
        right = touched[common >= overlap * (size + sizes[touched] - common)]
        confidences[right] = np.maximum(confidences[right], confidence)
        volume = size * case.voxel_volume
        rows.append(FoundObject(CANDIDATE, volume, confidence, len(right) > 0, _middle(box)))
    for truth, box in enumerate(ndimage.find_objects(truths), 1):
        volume, confidence = float(sizes[truth]) * case.voxel_volume, float(confidences[truth])
        rows.append(FoundObject(TRUE_OBJECT, volume, confidence, confidence > 0, _middle(box)))
    return rows


def largest_miss(
    found: Mapping[str, Sequence[FoundObject]],
) -> tuple[str, FoundObject] | None:
    """Return the largest true object that no candidate finds, with the name of its structure; None
    if all are found.

    Args:
        found: What `find_objects` returned for each structure.
    """
    missed = [(name, row) for name, rows in found.items() for row in rows if row.is_missed]
    return max(missed, key=lambda miss: miss[1].volume, default=None)


def show_object(case: Case, structure: str, row: FoundObject) -> tuple[int, NDArray[np.bool_]]:
    """Return the index of the slice in the middle of a true object, and where the object lies in
    it, `(X, Y)`.
    """
    *middle, index = map(int, row.place.split())
    _, true = case.masks
    mask = true[0, [*case.structures].index(structure), ..., index].cpu().numpy()
    parts, _ = ndimage.label(mask, np.ones([3] * mask.ndim))
    places = np.argwhere(mask)
    # The middle of the box of a bent object is none of its voxels
    nearest = places[np.abs(places - middle).sum(1).argmin()]
    return index, parts == parts[tuple(nearest)]


def _middle(box: tuple[slice, ...]) -> str:
    return " ".join(str((side.start + side.stop - 1) // 2) for side in box)
