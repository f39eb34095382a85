from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calib_components.losses import SVLSLoss, neighbor_prior
from calib_components.losses.priors import PADDINGS, PRIORS

IGNORED = 9


def window(labels: torch.Tensor, place: tuple[int, ...], kernel_size: int, padding: str) -> list[tuple[int, float]]:
    """The labels around a voxel that count, one by one, each with its weight in the SVLS kernel of sigma 2."""
    radius = kernel_size // 2
    found = []
    for offset in itertools.product(range(-radius, radius + 1), repeat=labels.ndim):
        at = [i + o for i, o in zip(place, offset, strict=True)]
        inside = [min(max(i, 0), n - 1) for i, n in zip(at, labels.shape, strict=True)]
        label = int(labels[tuple(inside)])
        if at != inside and padding == "background":
            label = 0
        weight = 2.718281828459045 ** (-sum(o * o for o in offset) / 8)
        found.append((label, 0.0 if not any(offset) else weight))
    around = sum(weight for _, weight in found)
    return [(label, weight or around) for label, weight in found if label != IGNORED]


def brute_force(labels: torch.Tensor, classes: int, prior: str, kernel_size: int, padding: str) -> torch.Tensor:
    """The definition, voxel by voxel, `(N, *S)` for labels `(*S)`."""
    result = torch.zeros(classes, *labels.shape, dtype=torch.float64)
    for place in itertools.product(*map(range, labels.shape)):
        counted = window(labels, place, kernel_size, "replicate" if prior == "gaussian" else padding)
        if not counted:
            continue
        values = torch.tensor([label for label, _ in counted])
        if prior in ("mean", "gaussian"):
            for label, weight in counted:
                result[(label, *place)] += weight if prior == "gaussian" else 1
            result[(slice(None), *place)] /= result[(slice(None), *place)].sum()
        else:
            found = {"max": values.max(), "min": values.min(), "median": values.median(), "mode": values.mode().values}
            result[(int(found[prior]), *place)] = 1
    return result


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("shape", "kernel_size"), [((6, 7), 3), ((6, 7), 5), ((4, 5, 3), 3)])
@pytest.mark.parametrize("ignore", [False, True])
def test_prior_is_its_definition(
    prior: str, padding: str, shape: tuple[int, ...], kernel_size: int, ignore: bool
) -> None:
    torch.manual_seed(0)
    labels = torch.randint(4, (2, *shape))
    if ignore:
        labels[torch.rand(labels.shape) < 0.3] = IGNORED
        labels[0, :3, :3] = IGNORED
    given = neighbor_prior(
        labels.unsqueeze(1),
        4,
        prior,
        kernel_size=kernel_size,
        padding=padding,
        ignore_index=IGNORED if ignore else None,
    )
    expected = torch.stack([brute_force(item, 4, prior, kernel_size, padding) for item in labels])
    torch.testing.assert_close(given.double(), expected, atol=1e-6, rtol=0)


def test_mean_by_hand() -> None:
    labels = torch.tensor([[[0, 0, 1], [0, 1, 1], [0, 1, 1]]])
    prior = neighbor_prior(labels, 2)
    assert prior[0, 1, 1, 1].item() == pytest.approx(5 / 9)
    # The corner's window, replicated: rows 0 0 1 / 0 0 1 / 0 0 1 ... of [[0, 0], [0, 1]].
    assert prior[0, 1, 0, 0].item() == pytest.approx(1 / 9)
    background = neighbor_prior(labels, 2, padding="background")
    assert background[0, :, 2, 2].tolist() == pytest.approx([5 / 9, 4 / 9])


def test_ties_of_mode_and_median() -> None:
    labels = torch.tensor([[[2, 1]]]).expand(1, 2, 2)  # every window holds as many of 1 as of 2, but for replication
    ignored = torch.tensor([[[3, 3, 3], [2, 3, 1], [3, 3, 3]]])
    assert neighbor_prior(ignored, 3, "mode", ignore_index=3)[0, :, 1, 1].tolist() == [0, 1, 0]
    assert neighbor_prior(ignored, 3, "median", ignore_index=3)[0, :, 1, 1].tolist() == [0, 1, 0]
    assert neighbor_prior(labels, 3, "max")[0, 2].tolist() == [[1, 1], [1, 1]]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(5, 4), (3, 4, 3)]), st.sampled_from(PADDINGS), st.booleans())
def test_shares_sum_to_one_at_borders_and_beside_ignored_voxels(
    seed: int, shape: tuple[int, ...], padding: str, ignore: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (1, *shape), generator=generator)
    if ignore:
        labels[torch.rand(labels.shape, generator=generator) < 0.4] = IGNORED
    counted = labels != IGNORED
    for prior in PRIORS:
        total = neighbor_prior(
            labels.unsqueeze(1), 3, prior, padding=padding, ignore_index=IGNORED if ignore else None
        ).sum(1)
        torch.testing.assert_close(total[counted], torch.ones_like(total[counted]))


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(4)), st.integers(0, 2**32 - 1))
def test_mean_follows_the_names_of_the_classes(order: list[int], seed: int) -> None:
    labels = torch.randint(4, (1, 5, 6), generator=torch.Generator().manual_seed(seed))
    renamed = torch.tensor(order)[labels]
    torch.testing.assert_close(neighbor_prior(renamed, 4)[:, order], neighbor_prior(labels, 4))


def test_gaussian_and_svls_of_a_constant_map_are_one_hot() -> None:
    labels = torch.full((1, 5, 5), 2)
    one_hot = torch.nn.functional.one_hot(labels, 4).movedim(-1, 1).float()
    torch.testing.assert_close(neighbor_prior(labels, 4, "gaussian"), one_hot)
    logits = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(SVLSLoss()(logits, labels), torch.nn.functional.cross_entropy(logits, labels))


def test_gaussian_centre_weighs_half_at_any_size() -> None:
    for kernel_size in (3, 5, 7):
        labels = torch.zeros(1, 9, 9, dtype=torch.long)
        labels[0, 4, 4] = 1
        prior = neighbor_prior(labels, 2, "gaussian", kernel_size=kernel_size)
        assert prior[0, 1, 4, 4].item() == pytest.approx(0.5)


def test_probabilities_are_filtered() -> None:
    labels = torch.randint(3, (2, 6, 5))
    one_hot = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    for prior, padding in itertools.product(("mean", "gaussian"), PADDINGS):
        torch.testing.assert_close(
            neighbor_prior(one_hot, 3, prior, padding=padding), neighbor_prior(labels, 3, prior, padding=padding)
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": "average"}, "prior: expected one of .* got 'average'"),
        ({"kernel_size": 4}, "kernel_size: expected an odd number, at least 1, got 4"),
        ({"prior": "gaussian", "kernel_size": 1}, "kernel_size: expected an odd number, at least 3, got 1"),
        ({"padding": "reflect"}, "padding: expected one of .* got 'reflect'"),
        ({"sigma": 0.0}, "sigma"),
    ],
)
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        neighbor_prior(torch.zeros(1, 4, 4), 2, **options)


def test_order_priors_are_undefined_for_probabilities() -> None:
    with pytest.raises(ValueError, match="'median' is defined for class indices only"):
        neighbor_prior(torch.full((1, 2, 4, 4), 0.5), 2, "median")
