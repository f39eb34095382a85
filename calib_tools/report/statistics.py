"""Means and paired differences over cases, with 95 % intervals and tests.

Cases of a patient depend on each other, so patients are resampled, not cases. Intervals are
percentiles of a bootstrap over patients, and tests flip the signs of patients: both are about these
trained networks. Fewer than six patients (`MIN_PATIENTS`) have neither. Whether a network is
calibrated is tested from two patients on, see `CalibrationGap`.

Undefined values are NaN. Means leave them out. `patients` are the patient of each case.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from calib_components.quality.ranking import MIN_PATIENTS

Array = NDArray[np.float64]

RESAMPLES = 9_999
SEED = 0  # a report has the same numbers each time it is made
LEVEL = 0.95
ENOUGH = 20  # patients, to say whether a network is calibrated
# Of `CalibrationGap`: they limit the false alarms of simulations, see the tests of `judge`
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


class CalibrationGap:
    """The mean of confidence minus accuracy over patients, its intervals, and the p-value of it
    being 0.

    They are those of one test, so that an interval of 95 % leaves out 0 where p < 0.05. Student's t
    alone rejects too often: all patients of a calibrated network can be right where one in twenty
    is wrong, and so look underconfident with little spread. So t is compared with what it is among
    calibrated patients, too, drawn as right in some of `PARTS` parts with these confidences; among
    few patients, a smaller `SPREAD` is no evidence. One patient has neither.

    Args:
        confidence: Mean confidence of each patient, `(patients,)`.
        accuracy: Their accuracy, `(patients,)`.
    """

    def __init__(self, confidence: ArrayLike, accuracy: ArrayLike) -> None:
        confidence = np.asarray(confidence, float).clip(0, 1)
        gaps = (confidence - np.asarray(accuracy, float)).round(9)  # equal up to rounding is equal
        self.mean, self.patients = float(mean_of_defined(gaps)), len(gaps)
        if self.patients < 2:
            return
        shape = (RESAMPLES, self.patients)
        drawn = np.random.default_rng(SEED).binomial(PARTS, confidence, shape) / PARTS
        self.spread = gaps.std(ddof=1)
        self._scale, self._drawn_t = self._scale_of(gaps), self._t(confidence - drawn)

    def _scale_of(self, gaps: Array) -> Array:
        errors = gaps.std(-1, ddof=1) / self.patients**0.5
        return np.maximum(errors, 1e-9) + SPREAD / self.patients**2

    def _t(self, gaps: Array) -> Array:
        return gaps.mean(-1) / self._scale_of(gaps)

    @property
    def p_value(self) -> float:
        """The p-value of the mean being 0; NaN with one patient."""
        if self.patients < 2:
            return math.nan
        t = self.mean / self._scale
        drawn = 2 * min((self._drawn_t >= t).mean(), (self._drawn_t <= t).mean())
        return float(min(1, max(2 * stats.t.sf(abs(t), self.patients - 1), drawn)))

    def estimate(self, level: float = LEVEL) -> Estimate:
        """Return the mean, its interval of a level, and the p-value."""
        if self.patients < 2:
            return Estimate(self.mean, cases=self.patients)
        student = stats.t.ppf((1 + level) / 2, self.patients - 1)
        low, high = np.quantile(self._drawn_t, [(1 - level) / 2, (1 + level) / 2])
        ends = self.mean - self._scale * np.array([max(student, high), min(-student, low)])
        low, high = np.clip(ends, -1, 1)
        return Estimate(self.mean, float(low), float(high), self.p_value, self.patients)

    def further_patients(self, margin: float) -> int:
        """Return about how many more patients would show that the mean is not 0, or that it is
        within a margin, if it and the spread stay the same. Too few patients do not tell the
        spread: with them, it is what docs/patients.md asks for.
        """
        if self.patients < MIN_PATIENTS:
            return ENOUGH - self.patients
        wanted = max(abs(self.mean), margin - abs(self.mean))
        needed = (stats.norm.ppf((1 + LEVEL) / 2) * self.spread / wanted) ** 2
        return max(2, math.ceil(needed) - self.patients)


def holm(p_values: ArrayLike) -> Array:
    """Return Holm's step-down adjusted p-values of tests that are made together; NaN is a test that
    was not made.
    """
    given = pd.Series(p_values, dtype=float).reset_index(drop=True)
    made = given.dropna().sort_values()
    return (
        (made * np.arange(len(made), 0, -1)).cummax().clip(upper=1).reindex(given.index).to_numpy()
    )


def holm_levels(p_values: ArrayLike) -> list[float]:
    """Return the levels of intervals of tests that are made together, which leave out 0 where
    Holm's adjusted p-value is below 0.05.
    """
    order, count = np.argsort(p_values), len(np.asarray(p_values))
    levels, is_rejected = np.full(count, LEVEL), True
    alpha = 0.0
    for rank, index in enumerate(order):
        if is_rejected:
            alpha = (1 - LEVEL) / (count - rank)
            is_rejected = np.asarray(p_values)[index] < alpha
        levels[index] = 1 - alpha
    return levels.tolist()
