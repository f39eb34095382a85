"""Regions: names, masks worked by hand, distances, and all measures in all regions against their
definitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calib_components.errors import InputError
from calib_components.metrics import Region, calibration_bins, distances, voxels
from calib_components.metrics.distances import near_mask
from calib_components.metrics.region_measures import RegionMeasures, measure_regions
from calib_components.metrics.voxels import check_tensors, read_voxels
from tests.calib_components.metrics import by_definition

CLOSED_FORM = ["foreground", (1,), (2, 3)]
REGIONS = ["all", "predicted", *CLOSED_FORM, "near"]
IGNORE = 255


def blobs(
    shape: Sequence[int], seed: int = 0, classes: int = 4, sharpness: float = 8.0
) -> torch.Tensor:
    """Probabilities `(1, N, *S)` in float64: mostly background, one class inside another, with soft
    borders.
    """
    generator = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(
        *(torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape), indexing="ij"
    )
    radius = sum(axis**2 for axis in axes) ** 0.5
    rings = [
        sharpness * (0.2 - (radius - 0.2 * (classes - 1 - k)).abs()) for k in range(1, classes)
    ]
    logits = torch.stack([sharpness * (radius - 0.7), *rings])
    return (
        logits + 0.5 * torch.randn(logits.shape, generator=generator, dtype=torch.float64)
    ).softmax(0)[None]


def draw_labels(p: torch.Tensor, seed: int) -> torch.Tensor:
    """Labels `(B, 1, *S)` from probabilities `(B, N, *S)`."""
    u = torch.rand(
        p[:, :1].shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return (p.cumsum(1) < u).sum(1, keepdim=True).clamp(max=p.shape[1] - 1)


def measured(
    p: torch.Tensor, y: torch.Tensor, regions: Sequence[Any], **options: Any
) -> dict[Any, RegionMeasures]:
    """All measures of regions, in one pass."""
    kinds = ["top_label", "classwise", "if_true", "nll", "brier"]
    names = {Region.parse(region): region for region in regions}
    found = measure_regions(p, y, dict.fromkeys(names, kinds), **options)
    return {names[region]: each for region, each in found.items()}


def values_of(found: RegionMeasures) -> dict[str, float]:
    values = {
        "ece": found.bins["top_label"].expected_error(),
        "cece": found.bins["classwise"].expected_error(),
    }
    return {name: value.item() for name, value in {**values, **found.scores}.items()}


def values_if_true(found: RegionMeasures) -> dict[str, float]:
    names = {"ece": "top_label_if_true", "cece": "classwise_if_true"}
    return {name: found.bins[kind].expected_error().item() for name, kind in names.items()}


# Names


@pytest.mark.parametrize(
    ("value", "region", "name"),
    [
        ("all", Region("all"), "all"),
        ("near", Region("near", 5), "near"),
        ("near(.5)", Region("near", 0.5), "near(0.5)"),
        ("near(1e-05)", Region("near", 0.00001), "near(1e-05)"),
        (
            Region("near", 3, spacing=(1, 1.5, 10)),
            Region("near", 3.0, (), (1.0, 1.5, 10.0)),
            "near(3 at 1x1.5x10)",
        ),
        (2, Region("structure", classes=(2,)), "structure_2"),
        ([3, 1, 3], Region("structure", classes=(1, 3)), "structure_1_3"),
        (Region("structure", classes=(3, 1)), Region.parse([1, 3]), "structure_1_3"),
        (np.int64(2), Region("structure", classes=(2,)), "structure_2"),
    ],
)
def test_parse_and_name(value: Any, region: Region, name: str) -> None:
    assert Region.parse(value) == region
    assert region.name == name


@pytest.mark.parametrize(
    "value",
    [
        "everywhere",
        "band",
        1.5,
        [],
        [1.0],
        -1,
        None,
        "near(-1)",
        "foreground(2)",
        "structure",
        Region,
    ],
)
def test_what_is_no_region(value: Any) -> None:
    with pytest.raises(InputError, match="region"):
        Region.parse(value)


def test_unsuitable_spacing_and_classes() -> None:
    with pytest.raises(InputError, match="'all' takes no spacing"):
        Region("all", spacing=(1, 1))
    p, y = blobs((8, 9)), draw_labels(blobs((8, 9)), 0)
    for spacing in ((1, 0), (1, float("nan")), (1, 1, 1)):
        with pytest.raises(InputError, match="spacing"):
            calibration_bins(p, y, region=Region("near", spacing=spacing))
    with pytest.raises(InputError, match=r"\[1, 4\].*0 to 3"):
        calibration_bins(p, y, region=[1, 4])
    with pytest.raises(InputError, match="foreground_only=True"):
        calibration_bins(p, y, region="all", foreground_only=True)


# By hand: two classes, six voxels in a row
#   p_1           0.02  0.10  0.25  0.60  0.90  0.04
#   predicted     0     0     0     1     1     0
#   ground truth  0     0     1     1     0     0
HAND_P1 = torch.tensor([0.02, 0.10, 0.25, 0.60, 0.90, 0.04], dtype=torch.float64)
HAND_P = torch.stack([1 - HAND_P1, HAND_P1])[None]
HAND_Y = torch.tensor([[[0, 0, 1, 1, 0, 0]]])


@pytest.mark.parametrize(
    ("region", "members"),
    [
        ("all", [0, 1, 2, 3, 4, 5]),
        ("predicted", [3, 4]),
        ("foreground", [2, 3]),
        ("near(1)", [1, 2, 3, 4]),
        ("near", [0, 1, 2, 3, 4, 5]),
        ("near(0.5)", [2, 3]),
        (0, [0, 1, 4, 5]),
        ([0, 1], [0, 1, 2, 3, 4, 5]),
    ],
)
def test_regions_by_hand(region: Any, members: list[int]) -> None:
    (voxels,) = read_voxels(*check_tensors(HAND_P, HAND_Y))
    found = Region.parse(region).select(voxels)
    assert torch.equal(found.p, HAND_P[0][:, members])
    assert torch.equal(found.label, HAND_Y[0, 0, members])
    of_region = calibration_bins(HAND_P, HAND_Y, region=region)
    assert (
        of_region.to_dict()
        == calibration_bins(HAND_P[..., members], HAND_Y[..., members], region="all").to_dict()
    )


# Distances


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(1, 8), min_size=1, max_size=3),
    st.sampled_from([0.5, 1.5, 2, 3.7]),
)
def test_masks_by_distance_equal_their_definition(
    seed: int, shape: list[int], radius: float
) -> None:
    rng = np.random.default_rng(seed)
    structure = rng.random(shape) < 0.1
    for spacing in (None, tuple(rng.choice([0.5, 1.0, 1.5, 3.0], len(shape)))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distances, "SLAB", int(rng.integers(1, 200)))
            found = near_mask(torch.from_numpy(structure), radius, spacing)
        assert np.array_equal(found.numpy(), by_definition.near(structure, radius, spacing))


# All measures in all regions


def assert_equals_definitions(p: torch.Tensor, y: torch.Tensor) -> None:
    """One pass, with ignored voxels."""
    y = y.clone()
    ignored = torch.rand(y.shape, generator=torch.Generator().manual_seed(9)) < 0.02
    y[ignored] = IGNORE
    p0, label, out = p[0].double().numpy(), y[0, 0].numpy(), ignored[0, 0].numpy()
    case = by_definition.Case(p0, ~out)
    for region, found in measured(p, y, REGIONS, ignore_index=IGNORE).items():
        mask = by_definition.inside(region, p0, label, out)
        assert 0 < mask.sum() == found.count == found.bins["top_label"].count.sum()
        assert values_of(found) == pytest.approx(case.measures(label, mask), abs=1e-12)
        if region in CLOSED_FORM:
            assert values_if_true(found) == pytest.approx(case.errors_if_true(region), abs=1e-12)
        else:
            assert "top_label_if_true" not in found.bins


@pytest.mark.parametrize("shape", [(40, 50), (20, 16, 18)])
@pytest.mark.parametrize("chunk", [500, voxels.CPU_CHUNK])
def test_small_cases(shape: tuple[int, ...], chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voxels, "CPU_CHUNK", chunk)
    p = blobs(shape)
    # As of a network that is too sure
    assert_equals_definitions(p.log().div(0.6).softmax(1), draw_labels(p, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_of_half_precision(dtype: torch.dtype) -> None:
    """Probabilities that do not sum to 1, of voxels of any class and of those that are surely
    background.
    """
    p = blobs((30, 40), sharpness=20)
    half = p.to(dtype)
    sums = half.double().sum(1)
    assert (sums != 1).any()
    assert ((half[:, 0] > 0.99) & (sums != 1)).any()
    assert_equals_definitions(half, draw_labels(p, 1))


# Sigmoids


def test_channels_of_sigmoids_are_cases_of_two_classes() -> None:
    """ECE, NLL and Brier score pool them, CECE is their mean."""
    parts = [blobs((12, 11, 10), seed, sharpness=14)[:, :1] for seed in range(3)]
    foreground = 1 - torch.cat(parts, 1)
    drawn = torch.rand(2, *foreground.shape, generator=torch.Generator().manual_seed(1))
    y = (drawn[0] < foreground).int().masked_fill(drawn[1] < 0.03, IGNORE)
    regions = ["all", "predicted", "foreground", (1,), (0, 1), "near"]
    channels = [
        measured(torch.cat([1 - p, p], 1), label, regions, ignore_index=IGNORE)
        for p, label in zip(foreground.split(1, 1), y.split(1, 1), strict=True)
    ]
    options: dict[str, Any] = {"sigmoid": True, "ignore_index": IGNORE}
    for region, found in measured(foreground, y, regions, **options).items():
        alone = [channel[region] for channel in channels]
        for kind in {"top_label", "top_label_if_true"} & found.bins.keys():
            first, second, third = (each.bins[kind] for each in alone)
            torch.testing.assert_close(vars(found.bins[kind]), vars(first + second + third))
        of_class = [each.bins["classwise"].expected_error(mean=False)[0, 1] for each in alone]
        assert values_of(found)["cece"] == pytest.approx(np.mean(of_class))
        counts = torch.cat([each.bins["top_label"].count.sum(-1) for each in alone])
        for name, score in found.scores.items():
            expected_scores = torch.cat([each.scores[name] for each in alone])
            torch.testing.assert_close(score[0], (expected_scores * counts).sum() / counts.sum())
