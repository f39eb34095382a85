"""Small data sets in the layouts of the downloads."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

SPACING = np.diag([1.5, 1.25, 10.0, 1.0])


def save(path: Path, array: np.ndarray, affine: np.ndarray = SPACING) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def blocks(shape: tuple[int, int, int], codes: list[int]) -> np.ndarray:
    """A label with a block of every code."""
    label = np.zeros(shape, np.uint8)
    for i, code in enumerate(codes):
        label[2 + 3 * i : 5 + 3 * i, 4:12, 1:-1] = code
    return label


def make_acdc(root: Path, patients: int = 2, shape: tuple[int, int, int] = (18, 16, 4)) -> Path:
    """ACDC's layout; the groups take turns."""
    rng = np.random.default_rng(0)
    for i in range(1, patients + 1):
        folder = root / "training" / f"patient{i:03d}"
        for frame in (1, 9):
            image = rng.integers(0, 500, shape).astype(np.int16)
            save(folder / f"patient{i:03d}_frame{frame:02d}.nii.gz", image)
            save(folder / f"patient{i:03d}_frame{frame:02d}_gt.nii.gz", blocks(shape, [1, 2, 3]))
        (folder / "Info.cfg").write_text(f"ED: 1\nES: 9\nGroup: {['DCM', 'NOR'][i % 2]}\nHeight: 180.0\n")
    return root


def make_brats(folder: Path, name: str, ending: str = "nii.gz") -> None:
    """One case of BraTS: noise in a brain that touches no side of the volume."""
    rng = np.random.default_rng(0)
    shape = (22, 24, 9)
    brain = np.zeros(shape, np.int16)
    brain[1:-3, 2:-2, 1:-1] = 1
    for channel in ("flair", "t1", "t1ce", "t2"):
        save(folder / f"{name}_{channel}.{ending}", brain * rng.integers(50, 900, shape).astype(np.int16), np.eye(4))
    save(folder / f"{name}_seg.{ending}", blocks(shape, [1, 2, 4]), np.eye(4))


def make_flare(root: Path, name: str, body: np.ndarray, label: np.ndarray, affine: np.ndarray) -> None:
    save(root / "TrainingImg" / f"{name}_0000.nii.gz", body, affine)
    save(root / "TrainingMask" / f"{name}.nii.gz", label, affine)
