"""Phantoms: small data sets of short-axis hearts in the layout of ACDC, which no download needs.

Each patient has a left ventricle (bright disc), its myocardium (dark ring) and a right ventricle (bright crescent) at
end-diastole and end-systole, in a chest with other bright structures, noise and a bias field. The borders of the label
deviate at random from those of the image, like those of a rater who errs: no network can be certain there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import expit

Array = NDArray[np.float64]

PIXEL, SLICE = 1.5, 10.0  # mm
RV, MYO, LV = 1, 2, 3  # label values of ACDC
NOISE = 0.06  # standard deviation, for a true image in [0, 1]
RATER = 1.5 * PIXEL  # standard deviation of the rater's borders from those of the image, in mm


@dataclass(frozen=True)
class Heart:
    """Size of a heart at its base; lengths are in mm."""

    cavity: float  # radius of the left ventricle's cavity
    wall: float  # thickness of the myocardium
    right: float  # radius of the right ventricle
    contraction: float  # radius of the cavities at end-systole, relative to end-diastole
    scar: float = 0.0  # share of its thickness that the wall lacks in one sector


GROUPS = {
    "NOR": Heart(cavity=23, wall=9, right=27, contraction=0.68),
    "DCM": Heart(cavity=31, wall=8, right=29, contraction=0.88),
    "HCM": Heart(cavity=20, wall=15, right=25, contraction=0.62),
    "MINF": Heart(cavity=27, wall=9, right=26, contraction=0.82, scar=0.5),
    "RV": Heart(cavity=22, wall=9, right=37, contraction=0.75),
}


def make_phantoms(out: Path, patients: int, seed: int = 0) -> None:
    """Write `out/training/patientNNN` with Info.cfg, two frames and their labels; the five groups take turns."""
    for number in range(1, patients + 1):
        rng = np.random.default_rng([seed, number, 0])
        group = list(GROUPS)[number % len(GROUPS)]
        name = f"patient{number:03d}"
        folder = out / "training" / name
        folder.mkdir(parents=True)
        systole = int(rng.integers(7, 14))
        (folder / "Info.cfg").write_text(f"ED: 1\nES: {systole}\nGroup: {group}\n")
        frames = draw_patient(GROUPS[group], rng)
        for frame, (image, label) in zip((1, systole), frames, strict=True):
            stem = f"{name}_frame{frame:02d}"
            _save(image, folder / f"{stem}.nii.gz")
            _save(label, folder / f"{stem}_gt.nii.gz")


def draw_patient(heart: Heart, rng: np.random.Generator) -> list[tuple[NDArray[np.int16], NDArray[np.uint8]]]:
    """Draw image and label, `(H, W, D)`, at end-diastole and at end-systole; slices run from base to apex."""
    size = rng.uniform(0.9, 1.1)
    heart = replace(heart, cavity=heart.cavity * size, wall=heart.wall * size, right=heart.right * size)
    area = (heart.cavity + heart.wall) ** 2 - heart.cavity**2  # of the wall, whose volume is constant
    small = heart.contraction * heart.cavity
    systole = replace(heart, cavity=small, wall=np.sqrt(small**2 + area) - small, right=heart.contraction * heart.right)

    shape = tuple(rng.integers((96, 96, 6), (129, 129, 11)).tolist())
    center = np.array(shape) / 2 + rng.uniform(-8, 8, 3)
    septum = np.pi + rng.uniform(-0.5, 0.5)  # direction from the left to the right ventricle
    x, y, _ = (np.indices(shape) - center[:, None, None, None]) * PIXEL
    chest = _draw_chest(x, y, septum, rng)
    frames = []
    for phase in (heart, systole):
        contours = _draw_contours(phase, x, y, septum, rng)
        blood, muscle = rng.uniform(0.7, 0.9), rng.uniform(0.22, 0.34)
        values = {RV: 0.95 * blood, MYO: muscle, LV: blood}
        image, label = _paint(chest, [(contours[RV] + 4, muscle)]), np.zeros(shape, np.uint8)
        image = _paint(image, [(distance, values[part]) for part, distance in contours.items()])
        error = RATER * _smooth_field(x.shape, rng)
        for part, distance in contours.items():
            label[distance + error > 0] = part
        frames.append((_acquire(image, rng), label))
    return frames


def _draw_contours(heart: Heart, x: Array, y: Array, septum: float, rng: np.random.Generator) -> dict[int, Array]:
    """Draw about the signed distance to each contour, in mm, positive inside; what comes later lies in front."""
    depth = np.linspace(0, 1, x.shape[-1])  # 0 at the base, 1 at the apex
    taper, fade = np.sqrt(1 - (0.8 * depth) ** 2), np.sqrt(np.maximum(0, 1 - 1.1 * depth**2))
    radius, angle = np.hypot(x, y), np.arctan2(y, x) - septum
    thinned = 1 - heart.scar * np.exp(-(((angle + np.pi) % (2 * np.pi) - np.pi - 1.8) ** 2))
    cavity = heart.cavity * taper - radius + _smooth_field(x.shape, rng)
    wall = heart.wall * (1 - 0.2 * depth) * thinned + 0.5 * _smooth_field(x.shape, rng)
    along, across = radius * np.cos(angle) - (heart.cavity + heart.wall) * taper, radius * np.sin(angle)
    right = heart.right * fade - np.hypot(along / 0.85, across / 1.15) + _smooth_field(x.shape, rng)
    return {RV: right, MYO: cavity + wall, LV: cavity}


def _draw_chest(x: Array, y: Array, septum: float, rng: np.random.Generator) -> Array:
    """Draw what surrounds the heart: dark lung, grey liver below, bright fat, a bright aorta and stomach."""
    liver = y - 45 + 12 * np.sin(x / 30 + rng.uniform(0, 1))
    ring = np.hypot(x / 1.25, y) - rng.uniform(72, 80)
    fat = np.hypot(x, y) - 48 + 8 * np.sin(2 * np.arctan2(y, x) + septum)
    spots = [(s - np.hypot(x - r * np.cos(a), y - r * np.sin(a)), v) for r, a, s, v in (
        (rng.uniform(58, 66), septum + rng.uniform(2.2, 2.8), rng.uniform(9, 13), 0.85),
        (rng.uniform(62, 75), septum + rng.uniform(-2.6, -1.8), rng.uniform(10, 18), 0.6),
    )]  # fmt: skip
    image = _paint(np.full(x.shape, 0.1), [(-fat, 0.46), (liver, 0.46), *spots, (ring, 0.55), (ring - 8, 0.8)])
    return image * (1 + 0.03 * _smooth_field(x.shape, rng))


def _paint(image: Array, parts: Sequence[tuple[Array, float]]) -> Array:
    """Paint parts, given as signed distances in mm and values, over an image; their edges are blurred by a voxel."""
    for distance, value in parts:
        image = image + expit(distance / 1.2) * (value - image)
    return image


def _smooth_field(shape: Sequence[int], rng: np.random.Generator, width: float = 6.0) -> Array:
    """Draw a smooth random field of standard deviation 1; its values are similar within about `width` mm."""
    field = gaussian_filter(rng.normal(size=shape), (width / PIXEL, width / PIXEL, width / SLICE))
    return field / field.std()


def _acquire(image: Array, rng: np.random.Generator) -> NDArray[np.int16]:
    """Apply what a scanner adds: a bias field, Rician noise and an arbitrary grey scale."""
    x, y, _ = np.indices(image.shape) / np.reshape(image.shape, (3, 1, 1, 1)) - 0.5
    a, b, c = rng.normal(0, 0.35, 3)
    image = image * np.exp(a * x + b * y + c * x * y)
    noise = rng.normal(0, NOISE, (2, *image.shape))
    return (rng.uniform(300, 900) * np.hypot(image + noise[0], noise[1])).astype(np.int16)


def _save(volume: NDArray[np.generic], path: Path) -> None:
    nib.Nifti1Image(volume, np.diag([PIXEL, PIXEL, SLICE, 1.0])).to_filename(path)
