"""Means and differences over the seeds of trainings and over patients, both random.

With one seed, they are those of `calib_tools.report.statistics`, over patients alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from calib_tools.report import statistics
from calib_tools.report.statistics import (
    LEVEL,
    MIN_PATIENTS,
    Array,
    Estimate,
)


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
        return statistics.mean_with_interval(table[0], patients)
    return _estimate([table], mean_of_defined(table), patients)._replace(p_value=np.nan)


def paired_difference(
    values: ArrayLike, reference: ArrayLike, patients: Sequence[str], same_seeds: bool = False
) -> Estimate:
    """Compare two methods on the same cases: the mean of `values - reference`, and its p-value.

    Both are `(cases,)` or `(seeds, cases)`. Cases where either has no value (NaN) are left out.
    Where one of the two has a single seed, interval and p-value are over patients alone.
    `same_seeds` says that both are of the same trained networks, such as without and with a
    temperature.
    """
    tables = [np.atleast_2d(np.asarray(each, float)) for each in (values, reference)]
    if same_seeds:
        tables = [tables[0] - tables[1]]
    means = [mean_of_defined(table) for table in tables]
    if min(map(len, tables)) == 1:
        others = means[1] if len(means) == 2 else np.zeros_like(means[0])
        return statistics.paired_difference(means[0], others, patients)
    return _estimate(tables, means[0] - sum(means[1:]), patients)


def _estimate(tables: Sequence[Array], differences: Array, patients: Sequence[str]) -> Estimate:
    """Return the mean of differences of cases, of one table `(seeds, cases)` or two."""
    defined = ~np.isnan(differences)
    cases, names = int(defined.sum()), np.asarray(patients)[defined]
    if cases == 0:
        return Estimate(np.nan)
    mean = float(differences[defined].mean())
    if len({*names}) < MIN_PATIENTS:
        return Estimate(mean, cases=cases)
    by_patient = []
    for table in tables:
        # A seed without a value takes that of the others
        filled = np.where(np.isnan(table), mean_of_defined(table), table)[:, defined]
        # Linearised contributions of patients to the ratio of sums: those with more cases weigh
        # more.
        sums = pd.DataFrame(filled.T - filled.mean()).groupby(names).sum().to_numpy().T
        by_patient.append(filled.mean() + sums * sums.shape[1] / cases)
    return Estimate(mean, *seeds_and_patients(mean, by_patient), cases)


def seeds_and_patients(mean: float, tables: Sequence[ArrayLike]) -> tuple[float, float, float]:
    """Return interval and p-value of a mean, or a difference of means, where seeds and patients are
    both random.

    With S seeds and P patients, `s^2` of the means of seeds, of the patients' (differences of)
    means over seeds, and of the residuals `e` of each table: `se^2 = sum(s_seeds^2 / S) +
    s_patients^2 / P - sum(s_e^2 / (S P))`, at least the larger of the first two terms. Both contain
    the residuals, hence the subtraction. Student's t has Welch-Satterthwaite degrees of freedom
    from S - 1 of each table and P - 1.

    `tables` are `(seeds, patients)`, of one method or of two on the same patients.
    """
    arrays = [np.asarray(table, float) for table in tables]
    parts, degrees, residual = [], [], 0.0
    for table in arrays:
        seeds, patients = table.shape
        parts.append(table.mean(1).var(ddof=1) / seeds)
        degrees.append(seeds - 1)
        left = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
        residual += (left**2).sum() / ((seeds - 1) * (patients - 1)) / (seeds * patients)
    patient_means = arrays[0].mean(0) - (arrays[1].mean(0) if len(arrays) == 2 else 0)
    parts.append(patient_means.var(ddof=1) / len(patient_means))
    degrees.append(len(patient_means) - 1)
    variance = max(sum(parts) - residual, parts[-1], sum(parts[:-1]))
    if variance == 0:
        return mean, mean, float(mean == 0)
    freedom = variance**2 / sum(
        part**2 / degree for part, degree in zip(parts, degrees, strict=True)
    )
    half = stats.t.ppf((1 + LEVEL) / 2, freedom, scale=variance**0.5)
    p_value = 2 * stats.t.sf(abs(mean), freedom, scale=variance**0.5)
    return float(mean - half), float(mean + half), float(p_value)
