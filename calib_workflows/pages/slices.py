"""A slice with contours and uncertainty as a small PNG, which needs no matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_dilation, binary_erosion

from calib_components.errors import printable

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 320  # pixels of the longer side of each panel
LARGE = 480  # that of pictures with text
GREYS = 64  # levels; more make files larger, not clearer
GREY_RANGE = (0.5, 99.5)  # percentiles of an image that are black and white
# Of Okabe and Ito. Protan and deutan readers tell the first ones apart best
COLORS = ("e69f00", "56b4e9", "009e73", "0072b2", "d55e00", "cc79a7", "f0e442")
CONTOUR, THIN = 3, 2  # pixels: widths of contours; thin ones let others be seen
LINE, FONT = 38, 28  # pixels: heights of a line and of its letters
# Around structures: a share of their extent, and pixels of the slice, more around what is encircled
MARGIN, LEAST, AROUND = 0.25, 16, 32
GAP = 12  # pixels between a circle and what it is around
# Of square pixels, whose first axis points to the right and whose second one points down
AS_STORED = np.diag([-1.0, -1.0, 1.0, 1.0])


class Panel(NamedTuple):
    """A slice as it is drawn beside others.

    Attributes:
        values: Grey values `(Y, X)`; or shares from 0, black, to 1, white. None is black.
        masks: Structures that get a contour, `(structures, Y, X)`, each in a colour of its own.
        is_share: Whether the values are shares.
        title: Its title.
    """

    values: ArrayLike | None
    masks: Sequence[NDArray] | NDArray = ()
    is_share: bool = False
    title: str = ""


def draw_slice(
    panels: Sequence[Panel],
    affine: NDArray = AS_STORED,
    title: str = "",
    names: Mapping[int, str] = MappingProxyType({}),
    side: int = SIDE,
    contour: int = CONTOUR,
    around: NDArray | None = None,
) -> bytes:
    """Draw a slice, once in each panel, as a PNG.

    All panels show the same square around the structures; without one, the whole slice.

    Args:
        panels: What is drawn, from left to right.
        affine: That of the scan, `(4, 4)`, whose first two axes are X and Y. It gives pixels their
            shape, and turns the patient's right side or front to the left, the front or head to the
            top.
        title: Lines above the picture and the titles of its panels; none without it.
        names: Names of structures by their index, for a legend of a picture with a title.
        side: Pixels of the longer side of a panel.
        contour: Pixels that a contour is wide.
        around: What is encircled, `(Y, X)`; the picture shows the square around it.
    """
    from PIL import Image  # comes with matplotlib, which metrics do not need

    axes = affine[:3, 1::-1]  # the steps of rows, then those of columns
    pixel = np.linalg.norm(axes, axis=0)
    if around is None:
        structures = [np.asarray(mask, bool) for panel in panels for mask in panel.masks]
        box = _square(np.any(structures, 0), pixel, LEAST)
    else:
        box = _square(around, pixel, AROUND)

    def on_paper(layer: ArrayLike, smooth: bool = False) -> NDArray:
        return _on_paper(np.asarray(layer, float)[box], axes, side, smooth)

    painted = []
    for panel in panels:
        masks = [on_paper(mask) > 0 for mask in panel.masks]
        values = panel.values
        if values is None:
            values = np.zeros(np.shape(panel.masks)[1:])
        pixels = _paint(on_paper(np.nan_to_num(values), True), masks, panel.is_share, contour)
        if around is not None:
            _encircle(pixels, on_paper(around))
        pixels[:, -CONTOUR:] = 0  # beside the next panel
        painted.append(pixels)
    picture = Image.fromarray(np.hstack(painted).astype(np.uint8))
    ramp = np.linspace(0, 255, GREYS)[:, None]
    greys = ramp.repeat(3, 1).astype(np.uint8).tobytes()
    # Black, red, yellow, white
    hot = (3 * ramp - [0, 255, 510]).clip(0, 255).astype(np.uint8).tobytes()
    picture.putpalette(greys + bytes.fromhex("".join(COLORS)) + hot)
    if title:
        picture = _with_text(picture, title, [panel.title for panel in panels], names)
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def _square(shown: NDArray, pixel: NDArray, least: int) -> tuple[slice, ...]:
    """Return the rows and columns of a square around what is shown; of nothing, all.

    Args:
        shown: `(Y, X)`.
        pixel: Height and width of a pixel in mm.
        least: Smallest margin in pixels.
    """
    places = np.argwhere(shown)
    if not len(places):
        return slice(None), slice(None)
    first, last = places.min(0), places.max(0) + 1
    extent = ((last - first) * pixel).max()
    side = extent + 2 * max(MARGIN * extent, least * pixel.min())
    lengths = np.ceil(side / pixel).astype(int)
    # At a border of the slice, the square is moved inwards
    starts = ((first + last - lengths) // 2).clip(0, np.maximum(shown.shape - lengths, 0))
    return tuple(slice(*ends) for ends in zip(starts, starts + lengths, strict=True))


def _on_paper(layer: NDArray, axes: NDArray, side: int, smooth: bool = False) -> NDArray:
    """Return a layer `(Y, X)` turned and enlarged as readers expect.

    Args:
        layer: An image or a mask.
        axes: Steps along a row and a column in mm, `(3, 2)`.
        side: Pixels of the longer side.
        smooth: Whether values between those of pixels are interpolated.
    """
    from PIL import Image

    # Towards right, front, up
    turned = [axis for axis in (0, 1) if axes[np.abs(axes[:, axis]).argmax(), axis] > 0]
    sizes = np.linalg.norm(axes, axis=0) * layer.shape
    height, width = np.maximum(1, sizes * side / sizes.max()).astype(int)
    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    picture = Image.fromarray(np.flip(layer, tuple(turned)).astype(np.float32))
    return np.asarray(picture.resize((width, height), how))


def _encircle(pixels: NDArray, mask: NDArray) -> None:
    """Draw a white circle with black edges around a mask."""
    rows, columns = np.nonzero(mask)
    ends = np.array([[rows.min(), columns.min()], [rows.max(), columns.max()]])
    radius = np.linalg.norm(ends[1] - ends[0]) / 2 + GAP
    y, x = ends.mean(0)
    row, column = np.ogrid[: len(pixels), : len(pixels[0])]
    from_circle = np.abs(np.hypot(row - y, column - x) - radius)
    pixels[from_circle < CONTOUR] = 0
    pixels[from_circle < CONTOUR / 2] = GREYS - 1


def _paint(values: NDArray, masks: Sequence[NDArray], is_share: bool, contour: int) -> NDArray:
    """Return the places in the palette of the pixels of a panel."""
    if is_share:
        pixels = GREYS + len(COLORS) + values.clip(0, 1) * (GREYS - 1)
    else:
        low, high = np.percentile(values, GREY_RANGE)
        pixels = ((values - low) / max(high - low, 1e-12)).clip(0, 1) * (GREYS - 1)
    for mask in masks:
        pixels[binary_dilation(mask) & ~mask] = 0  # seen on white, too
    for number, mask in enumerate(masks):
        # A structure goes on beyond the picture
        inside = binary_erosion(mask, iterations=contour, border_value=1)
        pixels[mask & ~inside] = GREYS + number % len(COLORS)
    return pixels


def _with_text(
    picture: Image, title: str, titles: Sequence[str], names: Mapping[int, str]
) -> Image:
    """Return a picture with its title and those of its panels above, and below it the names of
    structures in their colours.
    """
    from PIL import Image, ImageDraw

    top = LINE * (title.count("\n") + 2)
    bottom = top + picture.height
    page = Image.new("RGB", (picture.width, bottom + LINE * len(names)))
    page.paste(picture, (0, top))
    width = picture.width // len(titles)
    texts = [(0, row * LINE, line, "white") for row, line in enumerate(title.split("\n"))]
    texts += [(place * width, top - LINE, text, "white") for place, text in enumerate(titles)]
    for row, (number, name) in enumerate(names.items()):
        texts.append((0, bottom + row * LINE, name, f"#{COLORS[number % len(COLORS)]}"))
    draw = ImageDraw.Draw(page)
    for x, y, text, color in texts:
        draw.text((x, y), printable(text), color, font_size=FONT)
    return page


def draw_prediction(
    image: ArrayLike | None,
    label: ArrayLike,
    prediction: ArrayLike,
    uncertainty: ArrayLike | None,
    class_names: Sequence[str],
    title: str,
    missed: ArrayLike | None = None,
) -> bytes:
    """Draw a slice with contours of the ground truth, with contours of the prediction, and its
    uncertainty, as a PNG.

    Args:
        image: Grey values `(X, Y)`; None draws on black.
        label: Class index of the ground truth, `(X, Y)`; 0 is background.
        prediction: Predicted class index, `(X, Y)`.
        uncertainty: From 0, certain, to 1, `(X, Y)`; None leaves out its panel.
        class_names: Names of the classes, background first.
        title: Title of the picture, of one or more lines.
        missed: An object to encircle, `(X, Y)`.
    """
    grey = _rows_first(image)
    structures = np.arange(1, len(class_names))[:, None, None]
    panels = [
        Panel(grey, _rows_first(classes) == structures, title=name)
        for name, classes in (("ground truth", label), ("prediction", prediction))
    ]
    names = {
        index: name
        for index, name in enumerate(class_names[1:])
        if any(panel.masks[index].any() for panel in panels)
    }
    if uncertainty is not None:
        panels.append(Panel(_rows_first(uncertainty), is_share=True, title="uncertainty"))
    return draw_slice(panels, title=title, names=names, side=LARGE, around=_rows_first(missed))


def draw_raters(
    image: ArrayLike | None,
    masks: Mapping[str, ArrayLike],
    probability: ArrayLike | None,
    title: str,
) -> bytes:
    """Draw a slice with the contours of several raters, over the image and over the probability
    that the network gives the structures, as a PNG.

    Args:
        image: Grey values `(X, Y)`; None draws on black.
        masks: Where each rater sees a structure, `(X, Y)`, by name.
        probability: `(X, Y)`, from 0 to 1; None leaves out its panel.
        title: Title of the picture.
    """
    contours = [_rows_first(mask) for mask in masks.values()]
    panels = [Panel(_rows_first(image), contours, title="raters")]
    if probability is not None:
        panels.append(Panel(_rows_first(probability), contours, True, "probability"))
    return draw_slice(panels, title=title, names=dict(enumerate(masks)), side=LARGE, contour=THIN)


def _rows_first(values: ArrayLike | None) -> Any:
    """Return `(Y, X)` of `(X, Y)`."""
    return None if values is None else np.asarray(values).T
