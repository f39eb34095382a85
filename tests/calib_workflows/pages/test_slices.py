"""Pictures of a slice, by their pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from calib_workflows.pages.slices import (
    COLORS,
    LARGE,
    Panel,
    draw_prediction,
    draw_raters,
    draw_slice,
)


def draw(
    image: np.ndarray | None, mask: np.ndarray, uncertainty: np.ndarray, affine: np.ndarray
) -> bytes:
    return draw_slice([Panel(image, [mask]), Panel(uncertainty, is_share=True)], affine)


def test_a_picture_is_a_png_with_contours_turned_as_readers_expect() -> None:
    image, mask, scale = np.zeros((20, 40)), np.zeros((20, 40)), 256 / 40
    # Near the origin: right and back of the patient, if axes point to the left and the front
    mask[2:8, 4:12] = 1
    image[::19, ::39] = 1  # the corners: nothing is left out
    uncertainty = mask / 2
    # 40 mm x 40 mm
    content = draw(image, mask, uncertainty, np.diag([-1.0, 2.0, 5.0, 1.0]))
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    picture = Image.open(io.BytesIO(content))
    pixels, heat = np.hsplit(np.asarray(picture), 2)  # places in the palette
    assert pixels.shape == (256, 256)
    red, green, blue = np.asarray(picture.convert("RGB"))[:, 256:][heat > heat.min()].astype(int).T
    assert ((red == 255) & (green > 0) & (blue == 0)).all()  # halfway from black to white
    assert picture.getpalette()[64 * 3 :][:3] == [0xE6, 0x9F, 0x00]
    rows, columns = np.nonzero(pixels == 64)
    assert (columns.min(), columns.max() + 1) == pytest.approx((4 * scale, 12 * scale), abs=1)
    assert (rows.min(), rows.max() + 1) == pytest.approx((256 - 16 * scale, 256 - 4 * scale), abs=1)
    assert (pixels == 0).sum() > 256**2 - 1200
    assert (heat > heat.min()).sum() == pytest.approx(8 * 6 * scale * 2 * scale, rel=0.05)
    padded = (np.pad(each, 9) for each in (image, mask, uncertainty))
    image, mask, uncertainty = padded
    assert draw(image, mask, uncertainty, np.diag([-1.0, 2.0, 5.0, 1.0])) == content


@pytest.mark.parametrize(("image", "ground"), [(1 - np.eye(64), 63), (None, 0)])
def test_contours_are_seen_on_white_and_need_no_image(
    image: np.ndarray | None, ground: int
) -> None:
    mask = np.pad(np.ones((20, 20)), 22)
    content = draw(image, mask, np.eye(64), np.eye(4))
    across = np.asarray(Image.open(io.BytesIO(content)))[128]
    # 4 pixels a voxel
    assert across[86:92].tolist() == [ground, 0, 64, 64, 64, ground]


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
    assert sizes == [(number * LARGE, 320 + 5 * 30) for number in (2, 3)]
    for number, panel, (left, right, top, bottom) in (
        (0, 0, (20, 26, 2, 5)),
        (1, 1, (6, 12, 5, 9)),
    ):
        rows, columns = places_of(three, number)
        of_slice = (rows >= 90) & (rows < 410)  # between the title and the names
        ends = [columns[of_slice].min(), columns[of_slice].max() + 1]
        assert ends == [panel * LARGE + 16 * left, panel * LARGE + 16 * right]
        assert [rows[of_slice].min(), rows[of_slice].max() + 1] == [90 + 16 * top, 90 + 16 * bottom]
        assert (rows >= 410).sum() > 100
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
