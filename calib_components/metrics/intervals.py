"""Means over cases with 95 % intervals over patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from calib_components.errors import InputError
from calib_components.quality.ranking import MIN_PATIENTS

RESAMPLES = 9_999
SEED = 0  # the same numbers each time


class Estimate(NamedTuple):
    """A mean, its 95 % interval, and of a difference the p-value and the number of cases; NaN where
    there are too few patients.
    """

    mean: float
    low: float = np.nan
    high: float = np.nan
    p_value: float = np.nan
    cases: int = 0


def interval(values: ArrayLike, patients: Sequence[str]) -> Estimate:
    """Return the mean of a measure and its 95 % interval, as reports show it.

    Cases of a patient depend on each other, so patients are resampled, not cases: the interval is
    of percentiles of a bootstrap. It is about these networks; fewer than six patients have none.

    Args:
        values: A measure of cases, `(cases,)`; undefined ones (NaN) are left out.
        patients: The patient of each case.

    Raises:
        InputError: There are not as many patients as values.

    Examples:
        >>> from calib_components.metrics import interval
        >>> found = interval([0.9, 0.8, 0.7, 0.9, 0.8, 0.6], ["a", "b", "c", "d", "e", "f"])
        >>> f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"
        '0.78 [0.70, 0.87]'
    """
    sums = sums_of_patients(values, patients)
    if not len(sums):
        return Estimate(np.nan)
    total, cases = sums.sum(0)
    estimate = Estimate(total / cases, cases=int(cases))
    if len(sums) < MIN_PATIENTS:
        return estimate
    found = stats.bootstrap(
        sums.T,
        lambda sums, counts, axis=-1: sums.sum(axis) / counts.sum(axis),
        n_resamples=RESAMPLES,
        paired=True,
        vectorized=True,
        batch=500,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return estimate._replace(low=float(found.low), high=float(found.high))


def sums_of_patients(values: ArrayLike, patients: Sequence[str]) -> NDArray[np.float64]:
    """Return sum and number of the defined values of each patient who has one, `(patients, 2)`, in
    the order of their names.
    """
    cases, names = np.asarray(values, float), np.asarray(patients)
    if cases.ndim != 1 or cases.shape != names.shape:
        raise InputError(
            f"values and patients must be two lists of one length, got shapes {cases.shape} and"
            f" {names.shape}."
        )
    defined = ~np.isnan(cases)
    _, owner = np.unique(names[defined], return_inverse=True)
    return np.stack([np.bincount(owner, cases[defined]), np.bincount(owner)], axis=1)
