"""Predictions and labels in every form that people have, made up."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (6, 5, 4)  # unequal, so that no order of axes passes for another
AFFINE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, 0.2, 0.1) @ np.diag([1.5, 1.25, 8.0]), [-90, 30, 70]
)


class Harmful:
    """Its pickle makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def softmax_of(seed: int, channels: int = 3, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Probabilities `(C, X, Y, Z)`, float32."""
    logits = 2 * np.random.default_rng(seed).normal(size=(channels, *shape))
    powers = np.exp(logits - logits.max(0))
    return (powers / powers.sum(0)).astype(np.float32)


def label_of(
    seed: int, codes: tuple[int, ...] = (0, 1, 2), shape: tuple[int, ...] = SHAPE
) -> np.ndarray:
    return np.random.default_rng(1000 + seed).choice(codes, shape).astype(np.uint8)


def drawn_from(p: np.ndarray, seed: int = 0) -> np.ndarray:
    """Labels of a network that is neither over- nor underconfident: class indices `(X, Y, Z)` drawn
    from probabilities `(C, X, Y, Z)`.
    """
    draws = np.random.default_rng(seed).random(p.shape[1:])
    return (draws > np.cumsum(p, axis=0)[:-1]).sum(0).astype(np.uint8)


def save_nifti(file: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), file)
    return file


def save_channels_last(file: Path, p: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    return save_nifti(file, np.ascontiguousarray(np.moveaxis(p, 0, -1)), affine)


def save_rounded(file: Path, p: np.ndarray, dtype: type, slope: float) -> Path:
    """As integers, with their step in the header."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.rint(np.moveaxis(p, 0, -1) / slope).astype(dtype), AFFINE)
    image.header.set_slope_inter(slope, 0)
    image.to_filename(file)
    return file


def save_nnunet(
    folder: Path,
    name: str,
    p: np.ndarray,
    affine: np.ndarray | None = None,
    dtype: type = np.float16,
) -> Path:
    """`NAME.npz` with axes in reverse order, and where there is an affine, the segmentation."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / f"{name}.npz", probabilities=p.transpose(0, 3, 2, 1).astype(dtype))
    if affine is not None:
        save_nifti(folder / f"{name}.nii.gz", p.argmax(0).astype(np.uint8), affine)
    return folder / f"{name}.npz"
