"""Where a network of crops looks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import CenterSpatialCrop

from calib_components.errors import InputError
from calib_workflows.inference.crops import Crop, check_center, crop_at, find_crop

sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))


def counts(rows: int, columns: int, *blobs: tuple[int, int, int]) -> torch.Tensor:
    """A map with a disc of each row, column and radius."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return sum(
        ((y - row) ** 2 + (x - column) ** 2 <= radius**2).long() for row, column, radius in blobs
    )


@given(size=sizes, margins=st.tuples(*[st.integers(0, 15)] * 2), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_crop_of_a_turned_map_is_the_turned_crop(
    size: tuple[int, int], margins: tuple[int, int], seed: int
) -> None:
    """If as many pixels can be left out on either side."""
    rows, columns = (length + 2 * margin for length, margin in zip(size, margins, strict=True))
    foreground = 1 + torch.randint(
        5, (rows, columns), generator=torch.Generator().manual_seed(seed)
    )
    crop = find_crop(foreground, size)
    assert crop is not None
    top, bottom, left, right, percent = crop
    for turned, turned_size, expected in (
        (foreground.flip(0), size, (rows - bottom, rows - top, left, right)),
        (foreground.flip(1), size, (top, bottom, columns - right, columns - left)),
        (foreground.T, size[::-1], (left, right, top, bottom)),
    ):
        assert find_crop(turned, turned_size) == Crop(*expected, percent)


@given(
    size=sizes,
    rows=st.integers(12, 700),
    columns=st.integers(12, 700),
    center=st.tuples(*[st.floats(0, 1)] * 2),
)
def test_a_crop_is_inside_and_its_centre_gives_it_again(
    size: tuple[int, int], rows: int, columns: int, center: tuple[float, float]
) -> None:
    crop = crop_at(center, size, (rows, columns))
    assert crop.cut(torch.zeros(2, rows, columns, 3)).shape == (2, *size, 3)
    assert crop_at(crop.center((rows, columns)), size, (rows, columns)) == crop


@pytest.mark.parametrize("size", [(144, 145), (100, 61), (224, 225)])
def test_halves_are_the_centre_as_monai_crops_it(size: tuple[int, int]) -> None:
    volume = torch.rand(1, 224, 225, 2)
    middle = CenterSpatialCrop([*size, -1])(volume)
    assert torch.equal(crop_at((0.5, 0.5), size, (224, 225)).cut(volume), torch.as_tensor(middle))


def test_foreground_that_fills_the_crop_is_in_it_whole() -> None:
    """Most of it lies at one side, as a heart's left ventricle does."""
    foreground = 2 * counts(224, 224, (80, 100, 30)) + counts(224, 224, (125, 120, 50))
    crop = find_crop(foreground, (144, 144))
    assert crop is not None
    assert crop.cut(foreground[..., None]).sum() == foreground.sum()


def test_the_maximum_is_the_centre_where_all_fits() -> None:
    """A few voxels beside the heart would pull the centre of mass."""
    foreground = 2 * counts(224, 224, (100, 100, 30)) + 2 * counts(224, 224, (100, 158, 9))
    assert find_crop(foreground, (144, 144)) == Crop(28, 172, 28, 172)


def test_much_foreground_counts_and_far_voxels_do_not() -> None:
    foreground = 3 * counts(224, 200, (150, 60, 20)) + 9 * counts(224, 200, (10, 190, 2))
    crop = find_crop(foreground, (101, 101))
    assert crop is not None
    assert crop[:4] == (100, 201, 10, 111)
    assert crop.percent_found == 97  # of 3 * 1257 + 9 * 13
    # Moved inside
    assert find_crop(counts(224, 200, (5, 199, 9)), (101, 101)) == Crop(0, 101, 99, 200)
    assert find_crop(torch.zeros(224, 200), (101, 101)) is None


@pytest.mark.parametrize(
    "center",
    [(0.5,), (0.5, 1.5), (112, 112), 0.5, ["a", "b"]],
)
def test_a_centre_is_two_shares(center: Any) -> None:
    with pytest.raises(InputError, match=r"crop_center must be (two shares|a number from 0 to 1)"):
        check_center(center)


def test_why_a_crop_is_in_doubt() -> None:
    nothing = Crop(56, 168, 56, 168, percent_found=0)
    assert nothing.doubt.startswith("Nothing was found in the whole slices")
    cut = Crop(56, 168, 56, 168, percent_found=89)
    assert cut.doubt == "11 % of what was found in the whole slices lies outside of the crop"
    assert not Crop(56, 168, 56, 168, percent_found=99).doubt


def test_a_crop_larger_than_the_slices_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"crop_size: \[144, 144\] is larger than slices of \[112, 200\]"
    ):
        crop_at((0.5, 0.5), (144, 144), (112, 200))
