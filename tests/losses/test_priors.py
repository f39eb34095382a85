"""Priors against values worked out by hand, against brute force, and by their properties."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from calib_components.losses import neighbor_prior

PRIORS = ("mean", "gaussian", "max", "min", "median", "mode")
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
        counts = window != ignore_index
        weights = kernel if prior == "gaussian" else np.ones(len(window))
        window, weights = torch.tensor(window[counts]), torch.tensor(weights[counts])
        if len(window) == 0:
            continue
        if prior in ("mean", "gaussian"):
            share = torch.zeros(num_classes, dtype=torch.float64).index_add(0, window, weights / weights.sum())
            expected[:, *voxel] = share
        else:
            winner = getattr(torch, prior)(window)
            expected[winner if prior in ("max", "min") else winner.values if prior == "mode" else winner, *voxel] = 1
    return expected


