"""Objects of a structure beside components that are filled voxel by voxel."""

from __future__ import annotations

from itertools import product

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calib_components.metrics import find_objects
from calib_components.metrics.case import Case
from calib_components.metrics.objects import CANDIDATE, TRUE_OBJECT, largest_miss, show_object
from tests.helpers import SHARED

IGNORED = 255
LESIONS = SHARED / "data" / "lesions"


def components(mask: np.ndarray) -> list[set[tuple[int, ...]]]:
    """Sets of voxels that touch each other, over corners too."""
    left, parts = {*map(tuple, np.argwhere(mask).tolist())}, []
    while left:
        edge, part = [left.pop()], set()
        while edge:
            voxel = edge.pop()
            part.add(voxel)
            near = left.intersection(product(*((at - 1, at, at + 1) for at in voxel)))
            left -= near
            edge += near
        parts.append(part)
    return parts


def by_hand(p: np.ndarray, true: np.ndarray, threshold: float, overlap: float) -> list[tuple]:
    candidates, objects = components(p >= threshold), components(true)
    rows, best = [], [0.0] * len(objects)
    for part in candidates:
        confidence, right = max(float(p[voxel]) for voxel in part), False
        for number, other in enumerate(objects):
            common = len(part & other)
            if common and common >= overlap * len(part | other):
                right, best[number] = True, max(best[number], confidence)
        rows.append((CANDIDATE, len(part), confidence, right, middle(part)))
    return rows + [
        (TRUE_OBJECT, len(part), confidence, confidence > 0, middle(part))
        for part, confidence in zip(objects, best, strict=True)
    ]


def middle(part: set[tuple[int, ...]]) -> str:
    return " ".join(str((min(axis) + max(axis)) // 2) for axis in zip(*part, strict=True))


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(30,), (7, 9), (5, 4, 6)]),
    st.floats(0.02, 0.7),
    st.sampled_from([0.3, 0.5, 0.8]),
    st.sampled_from([0, 0.1, 0.5]),
)
@settings(max_examples=150)
def test_objects_are_those_of_sets_of_voxels(
    seed: int, shape: tuple[int, ...], density: float, threshold: float, overlap: float
) -> None:
    """Objects that touch, are nested, many to one, or none, also beside ignored voxels."""
    rng = np.random.default_rng(seed)
    p = rng.uniform(size=(2, *shape)).astype(np.float32) ** rng.choice([1, 4])
    label = (rng.uniform(size=(2, *shape)) < density).astype(np.int64)
    label[rng.uniform(size=label.shape) < rng.choice([0, 0.1])] = IGNORED
    expected = [
        by_hand(np.where(y == IGNORED, 0, each), y == 1, threshold, overlap)
        for each, y in zip(p, label, strict=True)
    ]
    maps = torch.from_numpy(p)[:, None], torch.from_numpy(label)[:, None]
    for each, y, rows in zip(*maps, expected, strict=True):
        case = Case(y, {"a": [0]}, each, None, True, IGNORED, voxel_volume=0.25)
        found = find_objects(case, "a", threshold, overlap)
        assert sorted(found) == sorted((kind, n / 4, *rest) for kind, n, *rest in rows)


def test_structures_of_a_softmax_and_of_label_maps() -> None:
    p = torch.tensor([[0.1, 0.8, 0.9, 0.3], [0.3, 0.1, 0.1, 0.4], [0.6, 0.1, 0.0, 0.3]])
    label = torch.tensor([[2, 0, 0, 1]])
    structures = {"both": [1, 2], "a": [1]}
    case = Case(label, structures, p, p.argmax(0))
    rows = find_objects(case, "both")
    assert [(row.kind, row.volume, row.matched) for row in rows] == [
        *[(CANDIDATE, 1, True)] * 2,
        *[(TRUE_OBJECT, 1, True)] * 2,
    ]
    assert [row.confidence for row in rows] == pytest.approx([0.9, 0.7] * 2)
    assert find_objects(case, "a") == [(TRUE_OBJECT, 1.0, 0.0, False, "3")]
    as_map = Case(label, structures, prediction=torch.tensor([1, 0, 0, 1]))
    assert find_objects(as_map, "a") == [
        (CANDIDATE, 1.0, 1.0, False, "0"),
        (CANDIDATE, 1.0, 1.0, True, "3"),
        (TRUE_OBJECT, 1.0, 1.0, True, "3"),
    ]


def test_the_largest_miss_is_shown_without_its_neighbours() -> None:
    """Also where the middle of its box is none of its voxels."""
    label = torch.zeros(1, 12, 12, 3, dtype=torch.int64)
    label[0, 2:9, 2, 1] = label[0, 2:9, 8, 1] = label[0, 2, 2:9, 1] = 1  # bent
    bent = label[0, ..., 1].bool().numpy()
    label[0, 11, 11, 1] = label[0, 11, 0, 0] = 1  # missed and found
    prediction = label[0] * 0
    prediction[11, 0, 0] = 1
    case = Case(label, {"other": [2], "lesion": [1]}, prediction=prediction)
    found = {name: find_objects(case, name) for name in case.structures}
    miss = largest_miss(found)
    assert miss == ("lesion", (TRUE_OBJECT, 19.0, 0.0, False, "5 5 1"))
    index, mask = show_object(case, *miss)
    assert index == 1
    np.testing.assert_array_equal(mask, bent)
    assert largest_miss({"lesion": find_objects(case, "other")}) is None


@pytest.mark.skipif(not LESIONS.is_dir(), reason="no real lesions beside this checkout")
@pytest.mark.parametrize("overlap", [0, 0.1])
def test_real_lesions_of_a_strangers_network(overlap: float) -> None:
    for name in ("wmh1", "wmh3"):
        label, prediction = (
            np.asarray(nib.load(LESIONS / folder / f"{name}.nii.gz").dataobj) > 0
            for folder in ("labels", "authors_segmentation")
        )
        case = Case(
            torch.from_numpy(label)[None].long(),
            {"lesion": [1]},
            prediction=torch.from_numpy(prediction).long(),
        )
        found = find_objects(case, "lesion", overlap=overlap)
        assert sorted(found) == sorted(by_hand(prediction, label, 0.5, overlap))
        assert 11 <= sum(kind == TRUE_OBJECT for kind, *_ in found) <= 77
