"""Priors: values worked out by hand, brute force, and properties."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from calib_components.losses import neighbor_prior, slabs
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


def random_labels(shape, num_classes, ignored_fraction=0.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=shape)
    labels[rng.random(shape) < ignored_fraction] = IGNORED
    return labels


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("ignored_fraction", [0.0, 0.3, 0.9])
@pytest.mark.parametrize(("shape", "kernel_size"), [((2, 5, 6), 3), ((1, 6, 4), 5), ((2, 3, 4, 5), 3)])
@pytest.mark.parametrize("slab", [1, 2**18], ids=["rows", "whole"])
def test_equals_brute_force(prior, padding, ignored_fraction, shape, kernel_size, slab, monkeypatch):
    monkeypatch.setattr(slabs, "CPU_SLAB_OF_A_THREAD", slab)
    labels = random_labels(shape, 4, ignored_fraction)
    ignore_index = IGNORED if ignored_fraction else None
    result = neighbor_prior(torch.tensor(labels), 4, prior, kernel_size, 1.5, padding, ignore_index)
    assert result.dtype == torch.float32
    expected = [brute_force_prior(image, 4, prior, kernel_size, 1.5, padding, ignore_index) for image in labels]
    np.testing.assert_allclose(result, np.stack(expected), atol=1e-6)


@pytest.mark.parametrize("prior", ["mean", "median", "mode"])
def test_windows_of_more_than_255_voxels_and_larger_than_the_image(prior):
    labels = random_labels((1, 4, 3, 5), 3)
    result = neighbor_prior(torch.tensor(labels), 3, prior, kernel_size=7)
    np.testing.assert_allclose(result[0], brute_force_prior(labels[0], 3, prior, 7, 2.0, "replicate", None), atol=1e-6)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("num_classes", [127, 128, 200])
def test_numbers_of_classes_around_the_range_of_int8(prior, num_classes):
    labels = random_labels((1, 5, 5), num_classes, ignored_fraction=0.2)
    labels[0, :3, :3] = IGNORED
    labels[0, 4, 4] = num_classes - 1
    result = neighbor_prior(torch.tensor(labels, dtype=torch.uint8), num_classes, prior, ignore_index=IGNORED)
    expected = brute_force_prior(labels[0], num_classes, prior, 3, 2.0, "replicate", IGNORED)
    np.testing.assert_allclose(result[0], expected, atol=1e-6)


# In the window of the centre: 0 three times, 1 twice, 2 four times.
LABELS = torch.tensor([[[2, 0, 2], [1, 0, 2], [1, 0, 2]]])


@pytest.mark.parametrize(
    ("prior", "expected"),
    [
        ("mean", [3 / 9, 2 / 9, 4 / 9]),
        ("max", [0, 0, 1]),
        ("min", [1, 0, 0]),
        ("median", [0, 1, 0]),
        ("mode", [0, 0, 1]),
    ],
)
def test_centre_by_hand(prior, expected):
    torch.testing.assert_close(neighbor_prior(LABELS, 3, prior)[0, :, 1, 1], torch.tensor(expected, dtype=torch.float))


def test_gaussian_by_hand():
    # With sigma^2 = 1 / (2 ln 2) a side neighbour weighs 1/2 and a corner 1/4: 3 in all, and so does the centre.
    sigma = math.sqrt(1 / (2 * math.log(2)))
    one_voxel = torch.tensor([[[0, 0, 0], [0, 1, 0], [0, 0, 0]]])
    proportion = neighbor_prior(one_voxel, 2, "gaussian", sigma=sigma)[0, 1]
    expected = torch.tensor([[0.25, 0.5, 0.25], [0.5, 3, 0.5], [0.25, 0.5, 0.25]]) / 6
    torch.testing.assert_close(proportion, expected)


@pytest.mark.parametrize("sigma", [0.1, 100.0])
def test_gaussian_of_extreme_width(sigma):
    one_voxel = torch.zeros(1, 3, 3, dtype=torch.long)
    one_voxel[0, 1, 1] = 1
    proportion = neighbor_prior(one_voxel, 2, "gaussian", sigma=sigma)[0, 1]
    side, corner = (1 / 8, 0.0) if sigma == 0.1 else (1 / 16, 1 / 16)
    expected = torch.tensor([[corner, side, corner], [side, 0.5, side], [corner, side, corner]])
    torch.testing.assert_close(proportion, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("prior", ["mean", "max", "min", "median", "mode"])
@pytest.mark.parametrize("padding", PADDINGS)
def test_a_window_of_one_voxel_gives_the_one_hot(prior, padding):
    one_hot = torch.nn.functional.one_hot(LABELS, 3).movedim(-1, 1).float()
    assert torch.equal(neighbor_prior(LABELS, 3, prior, kernel_size=1, padding=padding), one_hot)


def test_corner_by_hand_with_both_paddings():
    labels = torch.tensor([[[1, 0], [0, 0]]])
    assert neighbor_prior(labels, 2)[0, 1, 0, 0] == pytest.approx(4 / 9)  # the corner voxel is repeated three times
    assert neighbor_prior(labels, 2, padding="background")[0, 1, 0, 0] == pytest.approx(1 / 9)


def test_ignored_voxels_by_hand():
    labels = torch.tensor([[[0, 1, IGNORED, IGNORED, IGNORED]]])  # one row: replicated, each column counts three times
    mean = neighbor_prior(labels, 2, ignore_index=IGNORED)[0, :, 0]
    torch.testing.assert_close(mean, torch.tensor([[2 / 3, 1 / 2, 0, 0, 0], [1 / 3, 1 / 2, 1, 0, 0]]))
    for prior in ("max", "min", "median", "mode"):
        no_valid_voxel = neighbor_prior(labels, 2, prior, ignore_index=IGNORED)[0, :, 0, 3:]
        assert not no_valid_voxel.any()


def test_ties_go_to_the_smallest_class_and_even_counts_to_the_lower_median():
    labels = torch.tensor([[[2, 1, IGNORED]]])
    for prior in ("median", "mode"):
        assert neighbor_prior(labels, 3, prior, ignore_index=IGNORED)[0, :, 0, 1].tolist() == [0, 1, 0]


def test_a_class_can_be_ignored():
    labels = torch.tensor([[[0, 1, 1], [0, 2, 1], [0, 2, 1]]])
    proportion = neighbor_prior(labels, 3, ignore_index=0)[0, :, 1, 1]
    torch.testing.assert_close(proportion, torch.tensor([0, 4 / 6, 2 / 6]))


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


def test_four_dimensions_without_a_channel_are_read_as_a_volume():
    labels = torch.tensor(random_labels((2, 5, 4, 3), 3))
    torch.testing.assert_close(neighbor_prior(labels, 3), neighbor_prior(labels.unsqueeze(1), 3))


@st.composite
def labels_and_window(draw):
    """Labels of 4 classes, some ignored, `(B, *S)`, and the size of a window."""
    shape = draw(array_shapes(min_dims=3, max_dims=4, min_side=1, max_side=5))
    elements = st.sampled_from([0, 1, 2, 3, IGNORED])
    labels = draw(arrays(np.uint8, shape, elements=elements))
    return torch.tensor(labels).unsqueeze(1), draw(st.sampled_from([3, 5]))


@settings(max_examples=40)
@given(labels_and_window(), st.sampled_from(PRIORS), st.sampled_from(PADDINGS))
def test_prior_sums_to_one_where_the_window_holds_a_valid_voxel(drawn, prior, padding):
    labels, kernel_size = drawn
    result = neighbor_prior(labels, 4, prior, kernel_size, padding=padding, ignore_index=IGNORED)
    assert result.min() >= 0
    total = result.sum(1)
    mask = labels.squeeze(1) != IGNORED
    torch.testing.assert_close(total[mask], torch.ones_like(total[mask]))
    torch.testing.assert_close(total, total.round(), rtol=0, atol=1e-6)


@settings(max_examples=40)
@given(labels_and_window(), st.permutations(range(4)), st.sampled_from(["mean", "gaussian"]))
def test_permuting_the_classes_permutes_the_proportions(drawn, order, prior):
    labels, kernel_size = drawn
    renamed = torch.tensor([*order, *[IGNORED] * 252])[labels.long()]
    result = neighbor_prior(labels, 4, prior, kernel_size, ignore_index=IGNORED)
    result_renamed = neighbor_prior(renamed, 4, prior, kernel_size, ignore_index=IGNORED)
    torch.testing.assert_close(result_renamed[:, order], result)


@settings(max_examples=40)
@given(labels_and_window())
def test_reversing_the_classes_swaps_max_and_min(drawn):
    labels, kernel_size = drawn
    mirrored = torch.where(labels == IGNORED, labels, 3 - labels)
    largest = neighbor_prior(labels, 4, "max", kernel_size, ignore_index=IGNORED)
    smallest = neighbor_prior(mirrored, 4, "min", kernel_size, ignore_index=IGNORED)
    assert torch.equal(largest.flip(1), smallest)


@pytest.mark.parametrize("prior", ["mean", "max", "min", "median", "mode"])
@pytest.mark.parametrize("num_classes", [127, 128, 300, 32_768])
def test_classes_beyond_the_range_of_small_integers(prior, num_classes):
    labels = torch.tensor([[[0, num_classes - 1, num_classes - 1]]])  # one row, so that each column counts three times
    result = neighbor_prior(labels, num_classes, prior)[0, :, 0, 1]
    largest = {"mean": 2 / 3, "min": 0}.get(prior, 1)
    assert result[-1] == pytest.approx(largest)
    assert result[0] == pytest.approx(1 - largest)
    assert not result[1:-1].any()


@pytest.mark.parametrize("prior", PRIORS)
def test_constant_map_gives_its_one_hot(prior):
    result = neighbor_prior(torch.full((1, 3, 4, 3), 2), 4, prior)
    expected = torch.zeros(1, 4, 3, 4, 3)
    expected[:, 2] = 1
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": "average"}, r"prior: expected one of .*'mean'.* got 'average'"),
        ({"padding": "reflect"}, r"padding: expected one of .*'replicate'.* got 'reflect'"),
        ({"kernel_size": 4}, r"kernel_size: expected an odd number of at least 1, got 4"),
        ({"kernel_size": -1}, r"kernel_size: expected an odd number of at least 1, got -1"),
        ({"kernel_size": (3, 3)}, r"kernel_size: expected an odd number of at least 1, got \(3, 3\)"),
        ({"prior": "gaussian", "kernel_size": 1}, r"kernel_size: expected an odd number of at least 3, got 1"),
        ({"sigma": 0.0}, r"sigma: expected a number of at least 0.1, got 0.0"),
        ({"target": torch.zeros(1, 2, 5, 5, 5)}, r"target: expected .* got \(1, 2, 5, 5, 5\)"),
        ({"target": torch.zeros(5, 5)}, r"target: expected .* got \(5, 5\)"),
        ({"target": torch.full((1, 5, 5), 3)}, r"target: expected class indices from 0 to 2, got values from 3 to 3"),
        (
            {"target": torch.full((1, 3, 5, 5), 1 / 3), "prior": "mode"},
            r"target: expected class indices with the prior 'mode', got probabilities",
        ),
    ],
)
def test_invalid_arguments(options, message):
    arguments = {"target": torch.zeros(1, 5, 5, dtype=torch.long), "num_classes": 3} | options
    with pytest.raises(ValueError, match=message):
        neighbor_prior(**arguments)


def test_target_that_is_not_a_tensor_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"target: expected a torch\.Tensor, got ndarray"):
        neighbor_prior(torch.zeros(1, 5, 5).numpy(), 3)  # type: ignore[arg-type]
