"""The page of the estimates of many scans, worst first: one file that needs neither a network nor a
library.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import binary_dilation, binary_erosion

from calib_components.quality.estimates import ESTIMATES, QualityEstimate

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


def quality_page(records: Sequence[Mapping[str, Any]], caveats: Sequence[str]) -> str:
    """Return the page, in HTML, of what `choose` and `caveats` of `calib_workflows.pages.table`
    returned.
    """
    records, caveats = _escaped(records), _escaped(caveats)
    names = [record["scan"] for record in records if record["review"] == "yes"]
    defined = defined_estimates(records)
    columns = [each for each in ESTIMATES if each.format and each.name in defined]
    links = ", ".join(f'<a href="#{name}">{name}</a>' for name in names)
    notes = " ".join(sorted({record["note"] for record in records}))
    cards = "\n".join(_card(record, columns) for record in records)
    return TEMPLATE.substitute(
        number=len(names),
        total=len(records),
        links=links,
        caveats="".join(f"<p><strong>{text}</strong></p>" for text in caveats),
        notes=notes,
        cards=cards,
    )


def defined_estimates(records: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the names of the estimates that some structure of the scans has."""
    rows = [row for record in records for row in record["rows"]]
    return {name for row in rows for name, value in row.items() if value is not None}


def _escaped(content: Any) -> Any:
    """Return JSON data whose texts are HTML, whatever files they are from."""
    if isinstance(content, Mapping):
        return {name: _escaped(value) for name, value in content.items()}
    if isinstance(content, str):
        return escape(content)
    return [*map(_escaped, content)] if isinstance(content, list) else content


def _card(record: Mapping[str, Any], columns: Sequence[QualityEstimate]) -> str:
    """Return the part of the page about a scan."""
    titles = "".join(f"<th>{estimate.title}" for estimate in columns)
    lines = [f"<tr><th>{titles}"]
    for number, row in enumerate(record["rows"]):
        cells = "".join(f"<td>{_cell(row, estimate)}" for estimate in columns)
        mark = f'<i style="background:#{COLORS[number % len(COLORS)]}"></i>'
        lines.append(f"<tr><th>{mark}{row['structure']}{cells}")
    name, reasons = record["scan"], "; ".join(record["reasons"])
    picture, why, text = "", "", "No structure"
    if record["picture"]:
        source = f"data:image/png;base64,{record['picture']}"
        picture = f'<img loading="lazy" src="{source}">'
    if record["estimate"] is not None:
        text = f"Expected DSC <b>{record['estimate']:.2f}</b>"
    if record["place"] and record["place"] not in reasons:
        text += f", {record['place']}"
    if reasons:
        why = f'<p class="why">Check: {reasons}.</p>'
    body = f"{picture}<div><h2>{name}</h2><p>{text}</p>{why}<table>{''.join(lines)}</table></div>"
    return f'<article id="{name}" class="{record["review"]}">{body}</article>'


def _cell(row: Mapping[str, Any], estimate: QualityEstimate) -> str:
    """Return an estimate of a structure as text, with its limits if it has any."""
    values = [row.get(name) for name in (estimate.name, *estimate.limits)]
    if values[0] is None:
        return "-"
    value, *limits = (format(each, estimate.format) for each in values if each is not None)
    return f"{value} [{', '.join(limits)}]" if limits else value


TEMPLATE = Template("""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Segmentations to check</title>
<style>
:root { color-scheme: light dark; --ink: #222; --dim: #555; --line: #ddd; --check: #a33f00 }
:root { --page: #f5f5f3; --card: #fff }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --dim: #aaa; --line: #444; --check: #ffa366 }
  :root { --page: #161616; --card: #222 }
}
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--page) }
body { margin: auto; padding: 16px; max-width: 1400px }
header, p { margin: 0 0 6px; max-width: 850px }
a { color: inherit }
h2 { font-size: 16px; margin: 0 }
main { display: grid }
main { grid-template-columns: repeat(auto-fill, minmax(min(100%, 620px), 1fr)); gap: 12px }
article { background: var(--card); border-left: 6px solid var(--line); padding: 12px }
article { overflow-wrap: anywhere; content-visibility: auto; contain-intrinsic-size: auto 260px }
article:target { outline: 3px solid #56b4e9 }
img { float: left; width: 60%; max-width: 400px; margin: 0 12px 6px 0 }
.yes { border-color: #d55e00 }
.why { color: var(--check); font-weight: 600 }
.note { color: var(--dim); font-size: 13px }
b { font-size: 20px }
i { padding: 0 5px; margin-right: 6px; print-color-adjust: exact }
table { border-collapse: collapse; width: 100%; clear: both }
th, td { text-align: right; padding: 2px 4px }
th, td { border-bottom: 1px solid var(--line); font-size: 13px; font-weight: 400 }
th, td { overflow-wrap: normal }
th:first-child { text-align: left }
td { white-space: nowrap }
@media (max-width: 600px) { img { float: none; width: 100% } }
@media print { article { content-visibility: visible; break-inside: avoid } }
</style>
<header>
<h1>$number of $total segmentations to check</h1>
<p>$links</p>
$caveats
<p>Scans are in the order of their expected DSC, worst first: the overlap that the network itself
predicts, without labels, as a Dice similarity coefficient from 0 to 1; the mean over structures.
It is too high on images unlike those of the training.</p>
<p class="note">$notes Uncertain: of the voxels where the structure is possible (probability above
5 %), the share where it is not certain (95 % or less). Pairwise DSC, of several networks: the mean
overlap of their segmentations. Pictures show the slice with the most
uncertainty: the contours of the prediction, and beside them the uncertainty, 4 p (1 - p), from
black, certain, to white, undecided.</p>
</header>
<main>
$cards
</main>
""")
