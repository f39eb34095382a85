"""Phantoms: small data sets of short-axis hearts in the layout of ACDC, which no download needs.

The borders of a label deviate at random from those of the image, like those of a rater who errs: no
network can be certain there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from tests.helpers import save

PIXEL, AFFINE = 1.5, np.diag([1.5, 1.5, 10.0, 1.0])  # mm
RATER = 1.5 * PIXEL  # standard deviation of the rater's borders from those of the image, in mm
# Radius of the left cavity, thickness of the wall, and radius of the right cavity, in mm
GROUPS = {
    "NOR": (23, 9, 27),
    "DCM": (31, 8, 29),
    "HCM": (20, 15, 25),
    "MINF": (27, 9, 26),
    "RV": (22, 9, 37),
}
AROUND, VALUES = 0.45, {1: 0.75, 2: 0.3, 3: 0.8}  # of RV, MYO and LV in the image
NOISE = 0.06


def make_phantoms(out: Path, patients: int, seed: int = 0) -> None:
    """Write `out/training/patientNNN` with Info.cfg, two frames and their labels; the five groups
    take turns.
    """
    for number in range(1, patients + 1):
        rng = np.random.default_rng([seed, number])
        group, systole = list(GROUPS)[number % len(GROUPS)], int(rng.integers(7, 14))
        shape = rng.integers((96, 96, 6), (129, 129, 11)).tolist()
        center = np.array(shape) / 2 + rng.uniform(-8, 8, 3)
        folder = out / "training" / f"patient{number:03d}"
        for frame, size in ((1, 1.0), (systole, 0.75)):
            image, label = draw(size * np.array(GROUPS[group]), shape, center, rng)
            save(folder / f"{folder.name}_frame{frame:02d}.nii.gz", image, AFFINE)
            save(folder / f"{folder.name}_frame{frame:02d}_gt.nii.gz", label, AFFINE)
        (folder / "Info.cfg").write_text(f"ED: 1\nES: {systole}\nGroup: {group}\n")


def draw(
    sizes: NDArray[np.float64],
    shape: Sequence[int],
    center: NDArray[np.float64],
    rng: np.random.Generator,
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Draw image and label, `(H, W, D)`; slices run from base to apex."""
    x, y, _ = (np.indices(shape) - center[:, None, None, None]) * PIXEL
    cavity, wall, right = sizes[:, None] * np.sqrt(1 - (0.8 * np.linspace(0, 1, shape[2])) ** 2)
    radius = np.hypot(x, y)
    # Mm
    inside = {
        1: right - np.hypot(x + cavity + wall, y),
        2: cavity + wall - radius,
        3: cavity - radius,
    }
    error = gaussian_filter(rng.normal(size=shape), (4, 4, 0.6))
    image, label = np.full(shape, AROUND), np.zeros(shape, np.uint8)
    for part, distance in inside.items():  # later ones lie in front
        image[distance > 0] = VALUES[part]
        label[distance + RATER * error / error.std() > 0] = part
    return (600 * np.abs(image + rng.normal(0, NOISE, shape))).astype(np.int16), label
