"""Ranks of methods: of their means, as the paper has them, and on single cases. Intervals are over patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from calib_components.tools.report.statistics import (
    FEWEST_PATIENTS,
    Array,
    Estimate,
    bootstrap_interval,
    mean_of_defined,
    mean_with_interval,
)


class RankedCases(NamedTuple):
    """What methods are ranked by on a data set.

    Attributes:
        values: `(methods, cases, metrics)`; NaN where undefined.
        patients: Patient of each case.
        population: Data sets with the same number have the same patients, who are resampled together.
    """

    values: Array
    patients: Sequence[str]
    population: int = 0


def column_ranks(means: ArrayLike, higher_is_better: ArrayLike) -> Array:
    """Rank the methods in each column of a table of means.

    Args:
        means: `(methods, ..., columns)`, one column for each data set and metric; NaN ranks last.
        higher_is_better: `(columns,)`.

    Returns:
        `(methods, ..., columns)`: 1 is best, ties share the mean rank.
    """
    costs = np.where(higher_is_better, -1, 1) * np.asarray(means, float)
    return rankdata(np.where(np.isnan(costs), np.inf, costs), axis=0)


def sum_rank(means: ArrayLike, higher_is_better: ArrayLike) -> Array:
    """Return the sum of each method's ranks over the columns, `(methods, ...)`. Arguments as in `column_ranks`."""
    return column_ranks(means, higher_is_better).sum(-1)


def case_ranks(values: ArrayLike, higher_is_better: ArrayLike) -> Array:
    """Rank the methods on each case and metric.

    Args:
        values: `(methods, cases, metrics)`. An undefined value (NaN) ranks last.
        higher_is_better: `(metrics,)`.

    Returns:
        `(methods, cases, metrics)`: 1 is best, ties share the mean rank; NaN where no method has a value.
    """
    values = np.asarray(values, float)
    return np.where(np.isnan(values).all(0), np.nan, column_ranks(values, higher_is_better))


def means_over_common_cases(values: ArrayLike) -> Array:
    """Return the means `(methods, metrics)` over the cases where every method has a value."""
    values = np.asarray(values, float)
    return mean_of_defined(np.where(np.isnan(values).any(0), np.nan, values), axis=1)


def sum_ranks(datasets: Sequence[RankedCases], higher_is_better: ArrayLike) -> list[Estimate]:
    """Return the `sum_rank` of each method over data sets and its 95 % interval.

    There is no interval where fewer than six patients of a data set have values of all methods in some metric.
    """
    better = np.asarray(higher_is_better)
    totals = np.sum([sum_rank(means_over_common_cases(dataset.values), better) for dataset in datasets], axis=0)
    populations = list(dict.fromkeys(dataset.population for dataset in datasets))
    parts, numbers, fewest = [], {}, np.inf
    for dataset in datasets:
        names, index = np.unique(np.asarray(dataset.patients), return_inverse=True)
        by_patient = (index == np.arange(len(names))[:, None]).astype(float)  # (patients, cases)
        common = ~np.isnan(dataset.values).any(0)
        counts = by_patient @ common  # (patients, metrics)
        parts.append((by_patient @ np.where(common, dataset.values, 0), counts))
        numbers[dataset.population] = len(names)
        fewest = min(fewest, (counts > 0).sum(0).min())
    if fewest < FEWEST_PATIENTS:
        return [Estimate(float(total)) for total in totals]

    def statistic(*drawn: Array) -> Array:
        total = np.zeros(())
        for dataset, (sums, counts) in zip(datasets, parts, strict=True):
            indices = drawn[populations.index(dataset.population)]
            means = sums[:, indices].sum(-2) / counts[indices].sum(-2)  # (methods, ..., metrics)
            total = total + sum_rank(means, better)
        return total

    low, high = bootstrap_interval(statistic, *numbers.values())
    return [Estimate(float(m), float(a), float(b)) for m, a, b in zip(totals, low, high, strict=True)]


def mean_case_ranks(datasets: Sequence[RankedCases], higher_is_better: ArrayLike) -> list[Estimate]:
    """Return the mean of each method's ranks over all cases and metrics of data sets, and its 95 % interval."""
    ranks = np.concatenate([case_ranks(dataset.values, higher_is_better) for dataset in datasets], axis=1)
    patients = [f"{dataset.population}/{name}" for dataset in datasets for name in dataset.patients]
    repeated = np.repeat(patients, ranks.shape[2]).tolist()  # a case has one rank per metric
    return [mean_with_interval(of_method.ravel(), repeated) for of_method in ranks]
