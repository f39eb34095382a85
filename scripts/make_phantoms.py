"""Make a small data set of short-axis hearts in the layout of ACDC, to try things out without a download.

    python scripts/make_phantoms.py OUT --patients 20 --seed 0

Each patient has a left ventricle (bright disc), its myocardium (dark ring) and a right ventricle (bright crescent) at
end-diastole and end-systole, in a chest with other bright structures, noise and a bias field. The borders of the label
deviate from those of the image by about a millimetre, like those of two readers: no network can be certain there, so
calibration can be measured. The five groups of ACDC differ, exaggeratedly, in cavity, wall and contraction.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for a clone that is not installed

from calib_components.errors import InputError, writing
from calib_components.tools import command_line

Array = NDArray[np.float64]

PIXEL, SLICE = 1.5, 10.0  # mm
RV, MYO, LV = 1, 2, 3  # label values of ACDC


@dataclass(frozen=True)
class Heart:
    """Size of a heart at its base.

    Attributes:
        cavity: Radius of the left ventricle's cavity, in mm.
        wall: Thickness of the myocardium, in mm.
        right: Radius of the right ventricle, in mm.
        contraction: Radius of the cavities at end-systole, relative to end-diastole.
        scar: Share of its thickness that the wall lacks in one sector.
    """

    cavity: float
    wall: float
    right: float
    contraction: float
    scar: float = 0.0


GROUPS = {
    "NOR": Heart(cavity=23, wall=9, right=27, contraction=0.68),
    "DCM": Heart(cavity=31, wall=8, right=29, contraction=0.88),
    "HCM": Heart(cavity=20, wall=15, right=25, contraction=0.62),
    "MINF": Heart(cavity=27, wall=9, right=26, contraction=0.82, scar=0.5),
    "RV": Heart(cavity=22, wall=9, right=37, contraction=0.75),
}


def make_phantoms(out: Path, patients: int = 20, seed: int = 0) -> None:
    """Write `out/training/patientNNN` with Info.cfg, two frames and their labels; never over another data set.

    Args:
        out: Folder to write to.
        patients: Number of patients; the five groups take turns.
        seed: The same seed gives the same files.

    Raises:
        InputError: The folder holds another data set or cannot be written, or a number is not as expected.
    """
    if patients < 1:
        raise InputError(f"patients: expected a whole number of at least 1, got {patients}")
    if seed < 0:
        raise InputError(f"seed: expected a whole number of at least 0, got {seed}")
    for other in sorted((out / "training").glob("patient*")):
        ours = (other / "Info.cfg").is_file() and _is_phantom(other / "Info.cfg", seed)
        if not ours and not (other.is_dir() and not any(other.iterdir())):
            raise InputError(f"{other}: expected phantoms of seed {seed}, got other data; choose another folder")
    for number in tqdm(range(1, patients + 1), unit="patient", leave=False, disable=None):
        rng = np.random.default_rng([seed, number])
        group = list(GROUPS)[number % len(GROUPS)]
        folder = out / "training" / f"patient{number:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        systole = int(rng.integers(7, 14))
        info = f"ED: 1\nES: {systole}\nGroup: {group}\nPhantom: seed {seed}\n"
        (folder / "Info.cfg").write_text(info)
        for frame, (image, label) in zip((1, systole), draw_patient(GROUPS[group], rng), strict=True):
            stem = f"patient{number:03d}_frame{frame:02d}"
            _save(image, folder / f"{stem}.nii.gz")
            _save(label, folder / f"{stem}_gt.nii.gz")


def _is_phantom(info_file: Path, seed: int) -> bool:
    return info_file.read_bytes().endswith(f"\nPhantom: seed {seed}\n".encode())


def draw_patient(heart: Heart, rng: np.random.Generator) -> list[tuple[NDArray[np.int16], NDArray[np.uint8]]]:
    """Draw image and label, `(H, W, D)`, at end-diastole and at end-systole; slices run from base to apex."""
    size = rng.uniform(0.9, 1.1)
    heart = replace(heart, cavity=heart.cavity * size, wall=heart.wall * size, right=heart.right * size)
    area = (heart.cavity + heart.wall) ** 2 - heart.cavity**2  # of the wall, whose volume is constant
    small = heart.contraction * heart.cavity
    systole = replace(heart, cavity=small, wall=np.sqrt(small**2 + area) - small, right=heart.contraction * heart.right)

    shape = (int(rng.integers(96, 129)), int(rng.integers(96, 129)), int(rng.integers(6, 11)))
    center = np.array(shape[:2]) / 2 + rng.uniform(-8, 8, 2)
    septum = np.pi + rng.uniform(-0.5, 0.5)  # direction from the left to the right ventricle
    chest_seed = rng.integers(2**32)  # the chest is the same in both frames
    frames = []
    for phase in (heart, systole):
        chest = np.random.default_rng(chest_seed)
        slices = [
            _draw_slice(phase, k / (shape[2] - 1), shape[:2], center, septum, chest, rng) for k in range(shape[2])
        ]
        image = np.stack([image for image, _ in slices], axis=-1)
        label = np.stack([label for _, label in slices], axis=-1)
        frames.append((_acquire(image, rng), label))
    return frames


def _draw_slice(
    heart: Heart,
    depth: float,
    shape: tuple[int, ...],
    center: Array,
    septum: float,
    chest: np.random.Generator,
    rng: np.random.Generator,
) -> tuple[Array, NDArray[np.uint8]]:
    """Draw the noise-free image in [0, 1] and the label, `(H, W)`, at `depth`: 0 at the base, 1 at the apex."""
    x, y = (np.indices(shape) - center[:, None, None]) * PIXEL
    image = _draw_chest(x, y, septum, chest)

    # Approximate signed distance to each contour, in mm, positive inside.
    taper = np.sqrt(1 - (0.88 * depth) ** 2)
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    thinned = 1 - heart.scar * np.exp(-(((angle - septum + np.pi) % (2 * np.pi) - np.pi - 1.8) ** 2))
    cavity = heart.cavity * taper * (1 + _wander(angle, rng, 0.03)) - radius
    epicardium = cavity + heart.wall * (1 - 0.2 * depth) * thinned + _wander(angle, rng, 0.5)
    fade = np.sqrt(max(0.0, 1 - 1.1 * depth**2))
    along = np.cos(septum) * x + np.sin(septum) * y - (heart.cavity + heart.wall) * taper
    across = np.cos(septum) * y - np.sin(septum) * x
    lobe = np.hypot(along / 0.85, across / 1.15)
    right = heart.right * fade * (1 + _wander(np.arctan2(across, along), rng, 0.04)) - lobe
    right = np.minimum(right, -epicardium)

    blur = rng.uniform(0.8, 1.6)  # mm, partial volume
    blood, muscle = rng.uniform(0.7, 0.9), rng.uniform(0.22, 0.34)
    for distance, value in ((right + 4, muscle), (right, blood * 0.95), (epicardium, muscle), (cavity, blood)):
        inside = 1 / (1 + np.exp(-np.clip(distance / blur, -30, 30)))
        image += inside * (value - image)
    for papillary in septum + np.array([1.9, -2.2]) + rng.normal(0, 0.2, 2):
        spot = np.hypot(x - 0.6 * heart.cavity * np.cos(papillary), y - 0.6 * heart.cavity * np.sin(papillary))
        inside = 1 / (1 + np.exp((spot - 3.5 * taper) / blur))
        image += (depth < 0.75) * inside * np.clip(cavity / 5, 0, 1) * (muscle - image)

    label = np.zeros(shape, np.uint8)
    for distance, value in ((right, RV), (epicardium, MYO), (cavity, LV)):
        label[distance + _wander(angle, rng, 1.0) > 0] = value
    return image, label


def _draw_chest(x: Array, y: Array, septum: float, rng: np.random.Generator) -> Array:
    """Draw what surrounds the heart: dark lung, grey liver below, bright fat, a bright aorta and stomach."""
    image = np.full(x.shape, 0.1)
    texture = gaussian_filter(rng.normal(0, 1, x.shape), 2.5)
    liver = y - 45 + 12 * np.sin(x / 30 + rng.uniform(0, 1))
    ring = np.hypot(x / 1.25, y) - rng.uniform(72, 80)
    fat = np.hypot(x, y) - 48 + 8 * np.sin(2 * np.arctan2(y, x) + septum)
    spots = [(np.hypot(x - r * np.cos(a), y - r * np.sin(a)) - s, v) for r, a, s, v in (
        (rng.uniform(58, 66), septum + rng.uniform(2.2, 2.8), rng.uniform(9, 13), 0.85),
        (rng.uniform(62, 75), septum + rng.uniform(-2.6, -1.8), rng.uniform(10, 18), 0.6),
    )]  # fmt: skip
    for distance, value in ((fat, 0.38), (-liver, 0.42), *spots, (-ring, 0.55), (8 - ring, 0.8)):
        inside = 1 / (1 + np.exp(np.clip(distance / 2, -30, 30)))
        image += inside * (value - image)
    return np.clip(image + 0.25 * texture * image, 0, 1)


def _wander(angle: Array, rng: np.random.Generator, size: float) -> Array:
    """Draw a smooth random function on the circle, of standard deviation `size`."""
    orders = np.arange(5)
    amplitude = rng.normal(0, 1, 5) * size * np.sqrt(2 / 5)
    phase = rng.uniform(0, 2 * np.pi, 5)
    return np.sum([a * np.cos(k * angle + p) for k, a, p in zip(orders, amplitude, phase, strict=True)], axis=0)


def _acquire(image: Array, rng: np.random.Generator) -> NDArray[np.int16]:
    """Apply what a scanner adds: a bias field, Rician noise and an arbitrary grey scale."""
    x, y, _ = np.indices(image.shape) / np.reshape(image.shape, (3, 1, 1, 1)) - 0.5
    a, b, c = rng.normal(0, 0.35, 3)
    image = image * np.exp(a * x + b * y + c * x * y)
    noise = rng.normal(0, 0.06, (2, *image.shape))
    return (rng.uniform(300, 900) * np.hypot(image + noise[0], noise[1])).astype(np.int16)


def _save(volume: NDArray[np.generic], path: Path) -> None:
    with writing(path) as file:
        nib.Nifti1Image(volume, np.diag([PIXEL, PIXEL, SLICE, 1.0])).to_filename(file)


if __name__ == "__main__":
    command_line.run("make_phantoms", make_phantoms)
