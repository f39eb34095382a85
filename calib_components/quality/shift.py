"""Whether scans are like those of the training: is the network less sure of them?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from calib_components.quality.reference import Reference

Array = NDArray[np.float64]
SIGNIFICANT = 0.05
MEAN = "mean over structures"
LARGEST_EXACT = 1000  # patients; an exact test of more takes minutes, and gives the same


def find_shift(
    reference: Reference,
    patients: ArrayLike,
    expected_dsc: Mapping[str, ArrayLike],
    estimates: ArrayLike,
) -> dict[str, float]:
    """Test whether the network is less sure of scans without labels than of the reference.

    The expected DSC of a patient is the mean over the scans. For each structure and, with several,
    for their mean, patients are compared by a one-sided, exact Mann-Whitney test. A high p-value
    says nothing with few patients, and images of which the network is falsely sure are not seen.

    Args:
        reference: The labelled scans.
        patients: Patient of each scan, `(scans,)`.
        expected_dsc: Expected DSC of each scan, `(scans,)`, by structure; NaN without one.
        estimates: Mean over the structures of each scan, see `mean_estimate`, `(scans,)`.

    Returns:
        The Holm-corrected p-value of each structure, and of the mean; empty without patients on
        either side.
    """
    known = dict(zip(reference.structures, reference.values[..., 1].T, strict=True))
    new = {name: expected_dsc[name] for name in reference.structures}
    for name in {*known} - {*reference.always}:
        # Of new scans, where it is not predicted it may not be there
        known[name] = np.where(known[name] == 0, np.nan, known[name])
    if len(known) > 1:
        known[MEAN], new[MEAN] = reference.estimates, estimates
    p_values = {}
    for name, values in new.items():
        here = patient_means(values, patients)
        there = patient_means(known[name], reference.patient_numbers)
        if len(here) and len(there):
            method = "exact" if len(here) <= LARGEST_EXACT else "asymptotic"
            test = stats.mannwhitneyu(here, there, alternative="less", method=method)
            p_values[name] = float(test.pvalue)
    corrected = holm([*p_values.values()]).tolist()
    return dict(zip(p_values, corrected, strict=True))


def patient_means(values: ArrayLike, patients: ArrayLike) -> Array:
    """Return the mean of the values of each patient, `(patients,)`; NaN do not count."""
    values = np.array(values, np.float32)  # the precision of weights: else ties are none
    defined = ~np.isnan(values)
    _, numbers = np.unique(np.asarray(patients)[defined], return_inverse=True)
    return np.bincount(numbers, values[defined]) / np.bincount(numbers)


def holm(p_values: ArrayLike) -> Array:
    """Return Holm's step-down adjusted p-values of tests that are made together; NaN is a test that
    was not made.
    """
    adjusted = np.array(p_values, float)
    made = np.flatnonzero(~np.isnan(adjusted))
    in_order = made[np.argsort(adjusted[made], kind="stable")]
    factors = np.arange(len(made), 0, -1)
    adjusted[in_order] = np.maximum.accumulate(adjusted[in_order] * factors).clip(max=1)
    return adjusted
