"""Pictures of a slice, by their pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from calib_workflows.pages.slices import (
    AS_STORED,
    COLORS,
    LARGE,
    LINE,
    SIDE,
    Panel,
    draw_prediction,
    draw_raters,
    draw_slice,
)


def pixels_of(content: bytes) -> np.ndarray:
    """Places in the palette, in rows and columns."""
    return np.asarray(Image.open(io.BytesIO(content)))


def draw(
    image: np.ndarray | None, mask: np.ndarray, uncertainty: np.ndarray, affine: np.ndarray
) -> bytes:
    return draw_slice([Panel(image, [mask]), Panel(uncertainty, is_share=True)], affine)


def test_a_picture_is_a_png_with_contours_turned_as_readers_expect() -> None:
    image, mask, scale = np.zeros((20, 40)), np.zeros((20, 40)), SIDE / 40
    # Near the origin: right and back of the patient, if axes point to the left and the front
    mask[2:8, 4:12] = 1
    # 40 mm x 40 mm
    content = draw(image, mask, mask / 2, np.diag([-1.0, 2.0, 5.0, 1.0]))
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    picture = Image.open(io.BytesIO(content))
    pixels, heat = np.hsplit(np.asarray(picture), 2)  # places in the palette
    assert pixels.shape == (SIDE, SIDE)
    halfway = np.asarray(picture.convert("RGB"))[:, SIDE:][heat == heat.max()].astype(int).T
    red, green, blue = halfway  # from black to white
    assert ((red == 255) & (green > 0) & (blue == 0)).all()
    assert picture.getpalette()[64 * 3 :][:3] == [0xE6, 0x9F, 0x00]
    rows, columns = np.nonzero(pixels == 64)
    assert (columns.min(), columns.max() + 1) == pytest.approx((4 * scale, 12 * scale), abs=1)
    assert (rows.min(), rows.max() + 1) == pytest.approx(
        (SIDE - 16 * scale, SIDE - 4 * scale), abs=1
    )
    assert (pixels == 0).sum() > SIDE**2 - 1500
    inside = 7 * 5 * scale * 2 * scale  # values between those of pixels are interpolated
    assert (heat == heat.max()).sum() == pytest.approx(inside, rel=0.1)


@pytest.mark.parametrize("height", [1, 2])
@pytest.mark.parametrize(("top", "left", "first"), [(40, 90, (14, 74)), (0, 160, (0, 128))])
def test_structures_fill_a_square_in_all_panels(
    top: int, left: int, first: tuple[int, int], height: int
) -> None:
    """Of 20 x 40 mm and 16 mm around it, moved inwards at borders; pixels are that high."""
    mask = np.zeros((100, 200))
    mask[top : top + 20, left : left + 40] = 1
    affine = np.diag([-1.0, -height, 1, 1])
    content = draw(None, mask[::height], mask[::height], affine)
    pixels, heat = np.hsplit(pixels_of(content), 2)
    assert pixels.shape == (SIDE, SIDE)
    scale, place = SIDE / 72, np.array([top, left]) - first
    for found in (pixels == 64, heat > heat.max() - 5):
        ends = [(each.min() / scale, (each.max() + 1) / scale) for each in np.nonzero(found)]
        expected = [*zip(place, place + np.array([20, 40]), strict=True)]
        np.testing.assert_allclose(ends, expected, atol=1.2)


def test_a_slice_without_structures_is_shown_whole() -> None:
    pixels = pixels_of(draw(None, np.zeros((50, 100)), np.eye(50, 100), AS_STORED))
    assert pixels.shape == (SIDE // 2, 2 * SIDE)


def test_structures_that_go_on_have_no_contour_at_the_border() -> None:
    mask = np.ones((64, 64))
    assert not (pixels_of(draw(None, mask, mask, AS_STORED)) == 64).any()


@pytest.mark.parametrize(("image", "ground"), [(np.ones((64, 64)), 63), (None, 0)])
def test_contours_are_seen_on_white_and_need_no_image(
    image: np.ndarray | None, ground: int
) -> None:
    if image is not None:
        image[0, :32] = 0  # something is darker
    mask = np.pad(np.ones((32, 32)), 16)
    content = draw(image, mask, np.eye(64), AS_STORED)
    across = pixels_of(content)[SIDE // 2]
    # 5 pixels a voxel
    assert across[78:84].tolist() == [ground, 0, 64, 64, 64, ground]


@pytest.mark.parametrize("grey", [0, 1])
def test_a_missed_object_is_encircled_and_fills_its_picture(grey: int) -> None:
    """It is not in the middle of the structures, and the circle is seen on black and white."""
    label, missed = np.zeros((200, 200), int), np.zeros((200, 200), bool)
    label[10:60, 10:60] = 1
    missed[150:154, 130:133] = True
    image = np.full(label.shape, float(grey))
    image[120] = 1 - grey
    content = draw_prediction(
        image, label + missed, label, label / 2, ["background", "lesion"], "a case", missed
    )
    picture = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    middle = picture[2 * LINE + LARGE // 2, :, 0]
    # The square has 4 pixels, and 32 on either side
    left = round(LARGE / 2 - np.hypot(3, 4) / 2 * LARGE / 68 - 12)
    for panel in np.split(middle, 3):
        assert {0, 255} <= {*panel[left - 6 : left + 7]}


def places_of(content: bytes, number: int) -> list[np.ndarray]:
    """Rows and columns of the pixels in a colour."""
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    return [*np.nonzero((pixels == [*bytes.fromhex(COLORS[number])]).all(-1))]


def test_a_prediction_is_drawn_beside_the_truth_with_names_of_what_is_seen() -> None:
    label, prediction = np.zeros((30, 20), int), np.zeros((30, 20), int)
    label[20:26, 2:5], prediction[6:12, 5:9] = 1, 2
    image = np.random.default_rng(0).normal(size=label.shape)
    names = ["background", "$x_1$\n" * 20, "\u5fc3 \udcff", "unseen"]
    alone, three = (
        draw_prediction(image, label, prediction, uncertainty, names, "a case\nDSC 0.5")
        for uncertainty in (None, label / 2)
    )
    sizes = [Image.open(io.BytesIO(content)).size for content in (alone, three)]
    assert sizes == [(number * LARGE, 320 + 5 * LINE) for number in (2, 3)]
    for number, panel, (left, right, top, bottom) in (
        (0, 0, (20, 26, 2, 5)),
        (1, 1, (6, 12, 5, 9)),
    ):
        rows, columns = places_of(three, number)
        of_slice = (rows >= 3 * LINE) & (rows < 3 * LINE + 320)  # between the title and the names
        ends = [columns[of_slice].min(), columns[of_slice].max() + 1]
        assert ends == [panel * LARGE + 16 * left, panel * LARGE + 16 * right]
        ends = [rows[of_slice].min() - 3 * LINE, rows[of_slice].max() + 1 - 3 * LINE]
        assert ends == [16 * top, 16 * bottom]
        assert (rows >= 3 * LINE + 320).sum() > 100
    assert len(places_of(three, 2)[0]) == 0


def test_raters_are_drawn_over_the_image_and_the_probability() -> None:
    masks = {
        name: np.eye(16).repeat(2, 0)[start : start + 16] for name, start in (("A", 0), ("B", 8))
    }
    one, two = (draw_raters(None, masks, p, "case") for p in (None, np.full((16, 16), 0.5)))
    for number in range(2):
        _, columns = places_of(two, number)
        assert (columns < LARGE).any()
        assert (columns > LARGE).any()
        assert places_of(one, number)[1].max() < LARGE
