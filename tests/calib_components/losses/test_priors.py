"""Priors: brute force, values worked out by hand, and properties."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from calib_components.losses import base, neighbor_prior
from calib_components.losses.priors import PADDINGS, PRIORS

IGNORED = 255


def brute_force_prior(labels, num_classes, prior, kernel_size, sigma, padding, ignore_index):
    """The definition, voxel by voxel; `labels` is one image, (*S)."""
    radius = kernel_size // 2
    replicate = padding == "replicate" or prior == "gaussian"
    padded = np.pad(labels, radius, mode="edge") if replicate else np.pad(labels, radius, constant_values=0)
    offsets = np.array(list(itertools.product(range(-radius, radius + 1), repeat=labels.ndim)))
    kernel = np.exp(-(offsets**2).sum(1) / (2 * sigma**2))
    centre = len(kernel) // 2
    kernel[centre] = kernel.sum() - kernel[centre]
    expected = np.zeros((num_classes, *labels.shape))
    for voxel in np.ndindex(labels.shape):
        window = padded[tuple((np.array(voxel) + radius + offsets).T)].astype(int)
        valid = window != ignore_index
        weights = kernel if prior == "gaussian" else np.ones(len(window))
        window, weights = torch.tensor(window[valid]), torch.tensor(weights[valid])
        if len(window) == 0:
            continue
        if prior in ("mean", "gaussian"):
            proportion = torch.zeros(num_classes, dtype=torch.float64).index_add(0, window, weights / weights.sum())
            expected[(slice(None), *voxel)] = proportion
        else:
            winner = window.mode().values if prior == "mode" else getattr(window, prior)()
            expected[(int(winner), *voxel)] = 1
    return expected


def random_labels(shape, num_classes, ignored_fraction=0.0):
    rng = np.random.default_rng(0)
    labels = rng.integers(num_classes, size=shape)
    labels[rng.random(shape) < ignored_fraction] = IGNORED
    return labels


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("ignored_fraction", [0.0, 0.3, 0.9])
@pytest.mark.parametrize(("shape", "kernel_size"), [((2, 5, 6), 3), ((1, 6, 4), 5), ((2, 3, 4, 5), 3)])
@pytest.mark.parametrize("slab", [1, 2**18], ids=["rows", "whole"])
def test_equals_brute_force(prior, padding, ignored_fraction, shape, kernel_size, slab, monkeypatch):
    monkeypatch.setattr(base, "CPU_SLAB", slab)
    labels = random_labels(shape, 4, ignored_fraction)
    ignore_index = IGNORED if ignored_fraction else None
    result = neighbor_prior(torch.tensor(labels), 4, prior, kernel_size, 1.5, padding, ignore_index)
    assert result.dtype == torch.float32
    expected = [brute_force_prior(image, 4, prior, kernel_size, 1.5, padding, ignore_index) for image in labels]
    np.testing.assert_allclose(result, np.stack(expected), atol=1e-6)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("num_classes", [3, 127, 128, 300])
def test_many_classes_and_windows_larger_than_the_image(prior, num_classes):
    """Sums of 7 x 7 x 7 voxels, and the indices of 128 and more classes, do not fit into int8."""
    labels = random_labels((4, 3, 5), num_classes, ignored_fraction=0.2)
    labels[-1, -1, -1] = num_classes - 1
    result = neighbor_prior(torch.tensor(labels[None]), num_classes, prior, 7, ignore_index=IGNORED)
    expected = brute_force_prior(labels, num_classes, prior, 7, 2.0, "replicate", IGNORED)
    np.testing.assert_allclose(result[0], expected, atol=1e-6)


def test_gaussian_by_hand():
    # With sigma^2 = 1 / (2 ln 2) a side neighbour weighs 1/2 and a corner 1/4: 3 in all, and so does the centre.
    sigma = math.sqrt(1 / (2 * math.log(2)))
    one_voxel = torch.tensor([[[0, 0, 0], [0, 1, 0], [0, 0, 0]]])
    proportion = neighbor_prior(one_voxel, 2, "gaussian", sigma=sigma)[0, 1]
    expected = torch.tensor([[0.25, 0.5, 0.25], [0.5, 3, 0.5], [0.25, 0.5, 0.25]]) / 6
    torch.testing.assert_close(proportion, expected)


def test_ignored_voxels_by_hand():
    labels = torch.tensor([[[0, 1, IGNORED, IGNORED, IGNORED]]])  # one row: replicated, each column counts three times
    mean = neighbor_prior(labels, 2, ignore_index=IGNORED)[0, :, 0]
    torch.testing.assert_close(mean, torch.tensor([[2 / 3, 1 / 2, 0, 0, 0], [1 / 3, 1 / 2, 1, 0, 0]]))
    for prior in ("max", "min", "median", "mode"):
        assert not neighbor_prior(labels, 2, prior, ignore_index=IGNORED)[0, :, 0, 3:].any()
    assert neighbor_prior(labels, 2, "mode", ignore_index=IGNORED)[0, :, 0, 1].tolist() == [1, 0]  # ties: the smallest


@pytest.mark.parametrize("prior", ["mean", "gaussian"])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", [(2, 5, 6), (1, 4, 3, 5)])
def test_one_hot_probabilities_equal_class_indices(prior, padding, shape):
    labels = torch.tensor(random_labels(shape, 3))
    one_hot = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1)
    expected = neighbor_prior(labels, 3, prior, padding=padding)
    torch.testing.assert_close(neighbor_prior(one_hot, 3, prior, padding=padding), expected)
    in_float64 = neighbor_prior(one_hot.double(), 3, prior, padding=padding)
    torch.testing.assert_close(in_float64, expected.double(), rtol=0, atol=1e-6)


@st.composite
def labels_and_window(draw):
    """Labels of 4 classes, some ignored, `(B, 1, *S)`, and the size of a window."""
    shape = draw(array_shapes(min_dims=3, max_dims=4, min_side=1, max_side=5))
    labels = draw(arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 3, IGNORED])))
    return torch.tensor(labels).unsqueeze(1), draw(st.sampled_from([3, 5]))


@settings(max_examples=30)
@given(labels_and_window(), st.permutations(range(4)), st.sampled_from(PRIORS), st.sampled_from(PADDINGS))
def test_sums_flips_and_permutations(drawn, order, prior, padding):
    labels, kernel_size = drawn
    result = neighbor_prior(labels, 4, prior, kernel_size, padding=padding, ignore_index=IGNORED)
    total = result.sum(1)
    torch.testing.assert_close(total, ((labels[:, 0] != IGNORED) | (total > 0.5)).float())
    flipped = neighbor_prior(labels.flip(-1), 4, prior, kernel_size, padding=padding, ignore_index=IGNORED)
    torch.testing.assert_close(flipped.flip(-1), result)
    renamed = torch.tensor([*order, *[IGNORED] * 252])[labels.long()]
    if padding == "replicate" and prior in ("mean", "gaussian"):
        permuted = neighbor_prior(renamed, 4, prior, kernel_size, ignore_index=IGNORED)
        torch.testing.assert_close(permuted[:, order], result)
