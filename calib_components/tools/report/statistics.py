"""Means and paired differences over cases, with 95 % intervals and tests.

Cases of a patient depend on each other, so patients are resampled, not cases. Intervals are
percentiles of a bootstrap over patients, and tests flip the signs of patients: both are about these
trained networks. Fewer than six patients (`MIN_PATIENTS`) have neither. Whether a network is
calibrated is tested from two patients on, see `calibration_gap`.

Undefined values are NaN. Means leave them out. `patients` are the patient of each case.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]

RESAMPLES = 9_999
SEED = 0  # a report has the same numbers each time it is made
LEVEL = 0.95
MIN_PATIENTS = 6  # with five, a test by signs cannot go below p = 2 / 2^5 = 0.0625
# Of `calibration_gap`: they limit the false alarms of simulations, see the tests of `judge`
PARTS, SPREAD = 5, 0.05


class Estimate(NamedTuple):
    """A mean or another statistic, its 95 % interval, and of a difference the p-value and the
    number of cases.
    """

    mean: float
    low: float = np.nan
    high: float = np.nan
    p_value: float = np.nan
    cases: int = 0

    @property
    def has_interval(self) -> bool:
        """Whether there were enough patients for an interval."""
        return not np.isnan(self.low)


def mean_of_defined(values: ArrayLike, axis: int = 0) -> Array:
    """Return the mean along an axis without NaN; NaN where no value is defined."""
    return np.ma.filled(np.ma.masked_invalid(np.asarray(values, float)).mean(axis), np.nan)


def sums_of_patients(values: ArrayLike, patients: ArrayLike) -> Array:
    """Return the sums over the cases of each patient, `(patients, ...)` of `(cases, ...)`; patients
    in their order.
    """
    names, index = np.unique(np.asarray(patients), return_inverse=True)
    values = np.asarray(values, float)
    sums = np.zeros((len(names), *values.shape[1:]))
    np.add.at(sums, index, values)
    return sums


def mean_with_interval(values: ArrayLike, patients: Sequence[str]) -> Estimate:
    """Return the mean of `(cases,)` and its 95 % interval; undefined cases (NaN) are left out."""
    values = np.asarray(values, float)
    defined = ~np.isnan(values)
    cases, names = int(defined.sum()), np.asarray(patients)[defined]
    if cases == 0:
        return Estimate(np.nan)
    mean = float(values[defined].mean())
    if len({*names}) < MIN_PATIENTS:
        return Estimate(mean, cases=cases)
    sums, counts = (sums_of_patients(each, names) for each in (values[defined], np.ones(cases)))
    interval = stats.bootstrap(
        (sums, counts),
        lambda sums, counts, axis=-1: sums.sum(axis) / counts.sum(axis),
        n_resamples=RESAMPLES,
        paired=True,
        vectorized=True,
        batch=500,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high), cases=cases)


def paired_difference(values: ArrayLike, reference: ArrayLike, patients: Sequence[str]) -> Estimate:
    """Compare two evaluations of the same cases, `(cases,)` each.

    Returns:
        The mean of `values - reference` over the cases where both are defined, its interval, and
        the p-value of it being 0.
    """
    differences = np.asarray(values, float) - np.asarray(reference, float)
    p_value = sign_flip_p_value(differences, patients)
    return mean_with_interval(differences, patients)._replace(p_value=p_value)


def sign_flip_p_value(values: ArrayLike, patients: Sequence[str]) -> float:
    """Test whether the mean of `(cases,)` is 0, by changing signs of patients.

    All values of a patient change sign together, so they may depend on each other. Where a few
    patients are far off to one side, the test rejects too often: in simulations with a tenth of 16
    patients far off, in 15 to 20 % of comparisons. Undefined cases (NaN) are left out. The p-value
    is exact for up to 13 patients, and NaN with fewer than `MIN_PATIENTS`.

    Source: Fisher, "The Design of Experiments", 1935.
    """
    values = np.asarray(values, float)
    defined = ~np.isnan(values)
    sums = sums_of_patients(values[defined], np.asarray(patients)[defined])
    if len(sums) < MIN_PATIENTS:
        return np.nan
    result = stats.permutation_test(
        (np.ones(len(sums)),),
        lambda signs, axis=-1: np.abs(np.moveaxis(signs, axis, -1) @ sums),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=1000,
        alternative="greater",
        rng=np.random.default_rng(SEED),
    )
    return float(result.pvalue)


def calibration_gap(confidence: ArrayLike, accuracy: ArrayLike) -> Estimate:
    """Return the mean of confidence minus accuracy over patients, its 95 % interval, and the
    p-value of it being 0.

    They are those of Student's t, which alone rejects too often: all patients of a calibrated
    network can be right where one in twenty is wrong, and so look underconfident with little
    spread. So p is at least that of t among calibrated patients, drawn as right in some of `PARTS`
    parts with these confidences; among few patients, a smaller `SPREAD` is no evidence. The
    interval is that of t: it may exclude 0 where p does not. One patient has neither. Both are
    `(patients,)`.
    """
    confidence, accuracy = np.asarray(confidence, float).clip(0, 1), np.asarray(accuracy, float)
    mean, count = float(mean_of_defined(confidence - accuracy)), len(confidence)
    if count < 2:
        return Estimate(mean, cases=count)
    drawn = np.random.default_rng(SEED).binomial(PARTS, confidence, (RESAMPLES, count)) / PARTS
    gaps = (confidence - np.vstack([accuracy, drawn])).round(9)  # equal up to rounding is equal
    errors = np.maximum(gaps.std(1, ddof=1) / count**0.5, 1e-9)
    t = gaps.mean(1) / (errors + SPREAD / count**2)
    tail = min((t >= t[0]).sum(), (t <= t[0]).sum())
    student = stats.t(count - 1, scale=errors[0])
    p_value = min(1, max(2 * student.sf(abs(mean)), 2 * tail / (RESAMPLES + 1)))
    low, high = np.clip(mean + np.array(student.interval(LEVEL)), -1, 1)
    return Estimate(mean, float(low), float(high), float(p_value), count)


def holm(p_values: ArrayLike) -> Array:
    """Return Holm's step-down adjusted p-values of tests that are made together; NaN is a test that
    was not made.
    """
    given = pd.Series(p_values, dtype=float).reset_index(drop=True)
    made = given.dropna().sort_values()
    return (
        (made * np.arange(len(made), 0, -1)).cummax().clip(upper=1).reindex(given.index).to_numpy()
    )
