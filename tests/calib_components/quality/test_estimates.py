"""Estimates of one scan, against NumPy and against the measures that see labels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import entr
from sklearn.metrics import f1_score

from calib_components.errors import InputError
from calib_components.quality import PairwiseDice, ScanEstimates, StructureEstimate, mean_estimate

STRUCTURES = {"whole": [1, 2, 3], "core": [1, 3], "edge": [2]}


def probabilities(seed: int) -> torch.Tensor:
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, 4, (4, 5, 6, 7)))
    return (logits + torch.tensor([4, 0, 0, 0]).view(4, 1, 1, 1)).float().softmax(0)


def values_of(found: StructureEstimate) -> list[float]:
    return [
        found.expected_dsc,
        found.expected_voxels,
        found.predicted_voxels,
        found.uncertain_share,
        found.mean_entropy,
    ]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 4), max_size=4, unique=True))
def test_estimates_are_those_of_the_definition_however_the_scan_is_cut(
    seed: int, cuts: list[int]
) -> None:
    p, scan = probabilities(seed), ScanEstimates(STRUCTURES)
    for slab in p.tensor_split(sorted(cuts), dim=1):
        scan.update(slab)
    variance, found = np.zeros(5), scan.compute()
    for name, classes in STRUCTURES.items():
        own, predicted = (
            p.double().numpy()[classes].sum(0).clip(0, 1),
            np.isin(p.argmax(0), classes),
        )
        possible, bits = own > 0.05, (entr(own) + entr(1 - own)) / np.log(2)
        variance += (own * (1 - own) * (p[0] < 0.95).numpy()).sum((1, 2))
        uncertain = 1 - (own > 0.95).sum() / possible.sum()
        dsc = 2 * own[predicted].sum() / (predicted.sum() + own.sum())
        expected = (dsc, own.sum(), predicted.sum(), uncertain, bits[possible].mean())
        np.testing.assert_allclose(values_of(found[name]), expected, rtol=1e-6)
    assert scan.most_uncertain_slice == int(variance.argmax())


def test_pairwise_dice_is_that_of_scikit_learn() -> None:
    labels, pairs = (
        torch.randint(4, (3, 6, 5), generator=torch.Generator().manual_seed(0)),
        PairwiseDice(STRUCTURES),
    )
    for slab in labels.split(2, 1):
        pairs.update(slab)
    for name, classes in STRUCTURES.items():
        masks = np.isin(labels.flatten(1), classes)
        expected = np.mean(
            [f1_score(one, other) for one, other in itertools.combinations(masks, 2)]
        )
        assert pairs.compute()[name] == pytest.approx(expected)
    many, other = torch.ones(2, 2, 300, 300, dtype=torch.long), PairwiseDice({"all": [1]})
    many[1, 0] = 0
    with torch.autocast("cpu", torch.float16):  # whose largest number is 65504
        other.update(many)
    assert other.compute()["all"] == pytest.approx(2 / 3)
    (none := PairwiseDice({"none": [7]})).update(labels)
    assert np.isnan(none.compute()["none"])


def test_sigmoids_are_structures_of_their_own() -> None:
    p = torch.tensor([[0.9, 0.6, 0.0, 0.3], [0.0, 0.0, 0.0, 0.02]]).view(2, 2, 2)
    scan = ScanEstimates({"a": [0], "b": [1]}, sigmoid=True)
    scan.update(p)
    a, b = scan.compute().values()
    assert values_of(a)[:4] == pytest.approx([2 * 1.5 / (2 + 1.8), 1.8, 2, 1])
    assert values_of(b)[:3] == pytest.approx([0, 0.02, 0])
    assert scan.most_uncertain_slice == 0


def test_a_scan_without_structures_has_an_estimate_of_0_or_none() -> None:
    scan = ScanEstimates({"a": [1], "b": [2]})
    scan.update(torch.tensor([0.9, 0.1, 0.0]).view(3, 1, 1, 1).expand(3, 2, 4, 4))
    a, b = scan.compute().values()
    assert (a.expected_dsc, a.predicted_voxels) == (0, 0)
    assert np.isnan(b.expected_dsc)


def test_what_is_no_probability_is_refused() -> None:
    p = probabilities(0)
    with pytest.raises(InputError, match="structures: give different class indices below 3"):
        ScanEstimates(STRUCTURES).update(p[:3] / p[:3].sum(0))
    wrong = [p.log(), 1.1 * p, p[:, :, :, :2] - 0.1, p.where(p < 0.99, torch.nan)]
    for values, sigmoid in [(each, False) for each in (*wrong, p[:3])] + [(p.log(), True)]:
        with pytest.raises(InputError, match="from 0 to 1, and sum to 1"):
            ScanEstimates({"a": [1]}, sigmoid).update(values)


@pytest.mark.parametrize(
    "structures", [{}, {"a": []}, {"a": [1], "b": [-2]}, {"a": [2, 2]}, {"a": [1.5]}]
)
def test_structures_need_classes(structures: dict[str, list[int]]) -> None:
    with pytest.raises(InputError, match="structures: "):
        ScanEstimates(structures)


def test_a_missing_structure_counts_if_it_is_always_there() -> None:
    assert mean_estimate({"a": 0.8, "b": 0.0, "c": np.nan}, ["b"]) == pytest.approx(0.4)
    assert mean_estimate({"a": 0.8, "b": 0.0, "c": np.nan}, []) == pytest.approx(0.8)
    assert np.isnan(mean_estimate({"a": 0.0}, []))
