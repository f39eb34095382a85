"""Scans with estimates and truth, as if a network had segmented them."""

from __future__ import annotations

import numpy as np

from calib_components.quality import Reference, StructureEstimate

Truth = dict[str, tuple[float, float]]


def estimate(dsc: float, volume: float = 1000, predicted: float = 1000) -> StructureEstimate:
    return StructureEstimate(dsc, volume, predicted, 0.25, 0.5, 0.9)


def reference(patients: int, scans: int = 1, seed: int = 0, independent: bool = True) -> Reference:
    """So many patients, each with so many scans of two structures; those of a patient are alike."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(patients):
        for _ in range(scans):
            rows.append((f"p{patient}", *scan(rng, rng.normal())))
    return Reference.from_scans(rows, independent)


def scan(rng: np.random.Generator, patient: float) -> tuple[dict[str, StructureEstimate], Truth]:
    estimates, truth = {}, {}
    for name in ("a", "b"):
        dsc, expected, volume = rng.uniform(0.6, 0.95), rng.uniform(500, 2000), rng.uniform(0.7, 1.3)
        estimates[name] = estimate(float(dsc), float(expected))
        truth[name] = (float(np.clip(dsc + 0.05 * (patient + rng.normal()), 0, 1)), float(expected * volume))
    return estimates, truth
