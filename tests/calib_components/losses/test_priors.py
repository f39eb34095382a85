"""Priors, next to their definition voxel by voxel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from calib_components.losses import neighbor_prior, slabs
from calib_components.losses.priors import PADDINGS, PRIORS

IGNORED = 255


def brute_force_prior(labels, num_classes, prior, kernel_size, sigma, padding, ignore_index):
    """The definition, voxel by voxel; `labels` is one image, (*S)."""
    radius = kernel_size // 2
    replicate = padding == "replicate" or prior == "gaussian"
    padded = (
        np.pad(labels, radius, mode="edge")
        if replicate
        else np.pad(labels, radius, constant_values=0)
    )
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
            proportion = torch.zeros(num_classes, dtype=torch.float64).index_add(
                0, window, weights / weights.sum()
            )
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
@pytest.mark.parametrize(
    ("shape", "kernel_size"), [((2, 5, 6), 3), ((1, 6, 4), 5), ((2, 3, 4, 5), 3)]
)
def test_equals_brute_force(prior, padding, ignored_fraction, shape, kernel_size, monkeypatch):
    monkeypatch.setattr(slabs, "CPU_SLAB", 1)  # slabs of one row
    labels = random_labels(shape, 4, ignored_fraction)
    ignore_index = IGNORED if ignored_fraction else None
    result = neighbor_prior(torch.tensor(labels), 4, prior, kernel_size, 1.5, padding, ignore_index)
    assert result.dtype == torch.float32
    expected = [
        brute_force_prior(image, 4, prior, kernel_size, 1.5, padding, ignore_index)
        for image in labels
    ]
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
