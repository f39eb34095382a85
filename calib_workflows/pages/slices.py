"""A slice with contours and uncertainty as a small PNG, which needs no matplotlib."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import binary_dilation, binary_erosion

SIDE = 256  # pixels of the longer side of each picture
GREYS = 64  # levels; more make files larger, not clearer
GREY_RANGE = (0.5, 99.5)  # percentiles of an image that are black and white
# Of Okabe and Ito. Protan and deutan readers tell the first ones apart best
COLORS = ("e69f00", "56b4e9", "009e73", "0072b2", "d55e00", "cc79a7", "f0e442")
CONTOUR = 3  # pixels


def draw_slice(
    image: ArrayLike | None, masks: ArrayLike, uncertainty: ArrayLike, affine: np.ndarray
) -> bytes:
    """Draw a slice with the contours of its structures, and beside it its uncertainty, as a PNG.

    Args:
        image: Grey values `(Y, X)`; None draws on black.
        masks: Where the structures are predicted, `(structures, Y, X)`.
        uncertainty: From 0, black, to 1, white; `(Y, X)`.
        affine: That of the scan, `(4, 4)`, whose first two axes are X and Y. It gives pixels their
            shape, and turns the patient's right side or front to the left, the front or head to the
            top.
    """
    from PIL import Image  # comes with matplotlib, which metrics do not need

    grey = np.zeros(np.shape(uncertainty)) if image is None else np.nan_to_num(np.asarray(image))
    drawn = [grey, np.asarray(uncertainty, float), *np.asarray(masks, float)]
    layers = _on_paper(np.stack(drawn), affine[:3, 1::-1])
    low, high = np.percentile(layers[0], GREY_RANGE)
    pixels = ((layers[0] - low) / max(high - low, 1e-12)).clip(0, 1) * (GREYS - 1)
    for mask in layers[2:] > 0:
        pixels[binary_dilation(mask) & ~mask] = 0  # seen on white, too
    for number, mask in enumerate(layers[2:] > 0):
        inside = binary_erosion(mask, iterations=CONTOUR)
        pixels[mask & ~inside] = GREYS + number % len(COLORS)
    heat = GREYS + len(COLORS) + layers[1].clip(0, 1) * (GREYS - 1)
    picture = Image.fromarray(np.hstack([pixels, heat]).astype(np.uint8))
    content, ramp = io.BytesIO(), np.linspace(0, 255, GREYS)[:, None]
    greys = ramp.repeat(3, 1).astype(np.uint8).tobytes()
    # Black, red, yellow, white
    hot = (3 * ramp - [0, 255, 510]).clip(0, 255).astype(np.uint8).tobytes()
    picture.putpalette(greys + bytes.fromhex("".join(COLORS)) + hot)
    picture.save(content, "PNG")
    return content.getvalue()


def _on_paper(layers: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Return layers `(layers, Y, X)` without margins, turned and enlarged as readers expect.

    Args:
        layers: The image and the masks.
        axes: Steps along a row and a column in mm, `(3, 2)`.
    """
    for axis in (1, 2):
        filled = np.ptp(layers, axis=3 - axis).any(0).nonzero()[0]
        if filled.size:  # margins of one grey value are left out
            layers = layers.take(np.arange(filled[0], filled[-1] + 1), axis)
    # Towards right, front, up
    turned = [axis for axis in (0, 1) if axes[np.abs(axes[:, axis]).argmax(), axis] > 0]
    layers = np.flip(layers, tuple(1 + axis for axis in turned))
    sizes = np.linalg.norm(axes, axis=0) * layers.shape[1:]
    for axis, length in enumerate(np.maximum(1, sizes * SIDE / sizes.max()).astype(int), start=1):
        places = (np.arange(length) + 0.5) * layers.shape[axis] / length
        layers = layers.take(places.astype(int), axis)
    return layers
