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
    sums_of_patients,
)


class RankedCases(NamedTuple):
    """What methods are ranked by on a data set. Data sets of a population have the same patients."""

    costs: Array  # (methods, cases, metrics), the lower the better; NaN where undefined
    patients: Sequence[str]  # of each case
    population: str = ""


def ranks_of(costs: ArrayLike) -> Array:
    """Return the ranks of methods `(methods, ...)`: 1 is best, ties share the mean rank, undefined costs are last."""
    costs = np.asarray(costs, float)
    return rankdata(np.where(np.isnan(costs), np.inf, costs), axis=0)


def case_ranks(costs: ArrayLike) -> Array:
    """Return the ranks on each case and metric, `(methods, cases, metrics)`; NaN where no method has a value."""
    return np.where(np.isnan(costs).all(0), np.nan, ranks_of(costs))


def means_over_common_cases(costs: ArrayLike) -> Array:
    """Return the means `(methods, metrics)` over the cases where every method has a value."""
    return mean_of_defined(np.where(np.isnan(costs).any(0), np.nan, costs), axis=1)


def sum_ranks(datasets: Sequence[RankedCases]) -> list[Estimate]:
    """Return the sum of the ranks of each method's means over data sets and metrics, and its 95 % interval.

    There is no interval where fewer than six patients of a data set have values of all methods in some metric.
    """
    totals = np.sum([ranks_of(means_over_common_cases(data.costs)).sum(-1) for data in datasets], axis=0)
    parts, numbers, fewest = [], {}, np.inf
    for data in datasets:
        common = ~np.isnan(data.costs).any(0)
        counts = sums_of_patients(common, data.patients)  # (patients, metrics)
        sums = [sums_of_patients(of_method, data.patients) for of_method in np.where(common, data.costs, 0)]
        parts.append((np.stack(sums), counts))
        numbers[data.population] = len(counts)
        fewest = min(fewest, (counts > 0).sum(0).min())
    if fewest < FEWEST_PATIENTS:
        return [Estimate(float(total)) for total in totals]

    def statistic(*drawn: Array) -> Array:
        indices = dict(zip(numbers, drawn, strict=True))
        total = np.zeros(())
        for data, (sums, counts) in zip(datasets, parts, strict=True):
            chosen = indices[data.population]
            means = sums[:, chosen].sum(-2) / counts[chosen].sum(-2)  # (methods, ..., metrics)
            total = total + ranks_of(means).sum(-1)
        return total

    low, high = bootstrap_interval(statistic, *numbers.values())
    return [Estimate(float(m), float(a), float(b)) for m, a, b in zip(totals, low, high, strict=True)]


def mean_case_ranks(datasets: Sequence[RankedCases]) -> list[Estimate]:
    """Return the mean of each method's ranks over all cases and metrics of data sets, and its 95 % interval."""
    ranks = np.concatenate([case_ranks(data.costs) for data in datasets], axis=1)
    patients = [f"{data.population}/{name}" for data in datasets for name in data.patients]
    repeated = np.repeat(patients, ranks.shape[2]).tolist()  # a case has one rank per metric
    return [mean_with_interval(of_method.ravel(), repeated) for of_method in ranks]
