"""Means and differences over the seeds of trainings and over patients, both random.

With one seed, they are those of `calib_tools.report.statistics`, over patients alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from calib_components.metrics.intervals import Estimate, interval
from calib_tools.report import statistics
from calib_tools.report.statistics import LEVEL, MIN_PATIENTS, Array


def mean_of_defined(values: ArrayLike, axis: int = 0) -> Array:
    """Return the mean along an axis without NaN; NaN where no value is defined."""
    return np.ma.filled(np.ma.masked_invalid(np.asarray(values, float)).mean(axis), np.nan)


def mean_with_interval(values: ArrayLike, patients: Sequence[str]) -> Estimate:
    """Return the mean over cases of `(cases,)` or `(seeds, cases)`, and its 95 % interval.

    The value of a case is the mean over the seeds that have one; cases without any (NaN) are left
    out.
    """
    table = np.atleast_2d(np.asarray(values, float))
    if len(table) == 1:
        return interval(table[0], patients)
    return _estimate(table, patients)._replace(p_value=np.nan)


def paired_difference(values: ArrayLike, reference: ArrayLike, patients: Sequence[str]) -> Estimate:
    """Compare two methods on the same cases: the mean of `values - reference`, and its p-value.

    Both are `(cases,)` or `(seeds, cases)`, the same seeds in the same order: networks of a seed
    start from the same weights and see the same batches. Cases where either has no value (NaN) are
    left out. With one seed, or where the numbers of seeds differ, interval and p-value are over
    patients alone.
    """
    tables = [np.atleast_2d(np.asarray(each, float)) for each in (values, reference)]
    if len(tables[0]) == len(tables[1]) > 1:
        return _estimate(tables[0] - tables[1], patients)
    means = [mean_of_defined(table) for table in tables]
    return statistics.paired_difference(means[0], means[1], patients)


def _estimate(table: Array, patients: Sequence[str]) -> Estimate:
    """Return the mean over cases of `(seeds, cases)`, with interval and p-value."""
    means = mean_of_defined(table)
    defined = ~np.isnan(means)
    cases, names = int(defined.sum()), np.asarray(patients)[defined]
    if cases == 0:
        return Estimate(np.nan)
    # A seed without a value takes that of the others
    filled = np.where(np.isnan(table), means, table)[:, defined]
    mean = float(means[defined].mean())
    if len({*names}) < MIN_PATIENTS:
        return Estimate(mean, cases=cases)
    return Estimate(*seeds_and_patients(by_patient(filled, names)), cases)


def by_patient(table: Array, patients: ArrayLike) -> Array:
    """Return the contributions `(seeds, patients)` to the mean of cases `(seeds, cases)`: a patient
    with more cases weighs more.
    """
    mean = table.mean()  # a ratio of sums over patients, linearised
    sums = pd.DataFrame(table.T - mean).groupby(np.asarray(patients)).sum().to_numpy().T
    return np.asarray(mean + sums * sums.shape[1] / table.shape[1])


def seeds_and_patients(table: ArrayLike) -> tuple[float, float, float, float]:
    """Return the mean of a table `(seeds, patients)`, with interval and p-value where both are
    random.

    With S seeds and P patients, `s^2` of the means of seeds, of the means of patients and of the
    residuals `e`: `se^2 = s_seeds^2 / S + s_patients^2 / P - s_e^2 / (S P)`, at least the larger of
    the first two terms. Both contain the residuals, hence the subtraction. Student's t has
    Satterthwaite's degrees of freedom, from S - 1 and P - 1.
    """
    values = np.asarray(table, float)
    mean = float(values.mean())
    of_seeds, of_patients = values.mean(1), values.mean(0)
    parts = np.array([each.var(ddof=1) / each.size for each in (of_seeds, of_patients)])
    degrees = np.array(values.shape) - 1
    left = values - of_patients - of_seeds[:, None] + mean
    variance = max(parts.sum() - (left**2).sum() / degrees.prod() / values.size, *parts)
    if variance == 0:
        return mean, mean, mean, float(mean == 0)
    freedom = variance**2 / (parts**2 / degrees).sum()
    half = stats.t.ppf((1 + LEVEL) / 2, freedom, scale=variance**0.5)
    p_value = 2 * stats.t.sf(abs(mean), freedom, scale=variance**0.5)
    return mean, float(mean - half), float(mean + half), float(p_value)
