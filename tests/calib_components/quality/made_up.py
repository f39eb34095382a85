"""Estimates and references, as if a network had segmented scans of the structures "a" and "b"."""

from __future__ import annotations

import numpy as np
import torch

from calib_components.quality import Reference, StructureEstimate
from calib_components.quality.estimates import TERMS

NO_REFERENCE = Reference(["a", "b"], np.empty((0, 2, 5)))


def estimate(
    dsc: float, volume: float = 1000, predicted: float = 1000, possible: float = 4
) -> StructureEstimate:
    """Sums that give this expected DSC, an uncertain share of 0.25 and an entropy of 0.5 bits; of
    other terms, NaN.
    """
    sums = dict.fromkeys(TERMS, np.nan) | {
        "expected": volume,
        "predicted": predicted,
        "overlap": dsc * (volume + predicted) / 2,
        "possible": possible,
        "certain": 0.75 * possible,
        "entropy": 0.5 * np.log(2) * possible,
    }
    return StructureEstimate(
        {name: torch.tensor(value, dtype=torch.float64) for name, value in sums.items()}
    )


def reference(patients: int, scans: int = 1, seed: int = 0) -> Reference:
    """So many patients, each with so many scans, whose errors are alike."""
    rng, shape = np.random.default_rng(seed), (patients, scans, 2)
    estimates, expected = rng.uniform(0.6, 0.99, shape), rng.uniform(500, 2000, shape)
    errors = rng.normal(0, 0.05, shape) + rng.normal(0, 0.05, (patients, 1, 2))
    dsc, true = (estimates + errors).clip(0, 1), expected * rng.uniform(0.7, 1.3, shape)
    columns = np.broadcast_arrays(
        np.arange(patients)[:, None, None], estimates, dsc, expected, true
    )
    return Reference(["a", "b"], np.stack(columns, -1).reshape(-1, 2, 5))
