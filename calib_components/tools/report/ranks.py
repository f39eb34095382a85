"""Ranks of methods: of their means, as the paper has them, and on single cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from calib_components.tools.report.statistics import (
    Array,
    Estimate,
    draw_weights,
    mean_of_defined,
    mean_with_interval,
    percentiles,
)

__all__ = [
    "RankedCases",
    "case_ranks",
    "column_ranks",
    "mean_case_rank_with_interval",
    "means_over_common_cases",
    "sum_rank",
    "sum_rank_with_interval",
]

PATIENTS, RUNS = 1, 2  # streams of random numbers


def column_ranks(means: ArrayLike, higher_is_better: ArrayLike) -> Array:
    """Rank the methods in each column of a table of means.

    Args:
        means: `(methods, columns)`, one column for each data set and metric; NaN ranks last.
        higher_is_better: `(columns,)`.

    Returns:
        `(methods, columns)`: 1 is best, ties share the mean rank.
    """
    costs = np.where(higher_is_better, -1, 1) * np.asarray(means, float)
    return rankdata(np.where(np.isnan(costs), np.inf, costs), axis=0)


def sum_rank(means: ArrayLike, higher_is_better: ArrayLike) -> Array:
    """Return the sum of each method's ranks over the columns, `(methods,)`. Arguments as in `column_ranks`."""
    return column_ranks(means, higher_is_better).sum(1)


class RankedCases(NamedTuple):
    """What methods are ranked by on a data set.

    Attributes:
        values: `(runs, cases, metrics)` of each method: runs are its trainings. A value that is undefined (NaN) in one
            run counts as undefined in all.
        patients: The patient of each case.
        networks: Number of the comparison that the networks are from: data sets of one number are those that the same
            networks were evaluated on.
        population: Number of the set of patients: data sets of one number are of the same patients.
    """

    values: Sequence[Array]
    patients: Sequence[str]
    networks: int = 0
    population: int = 0

    @property
    def of_methods(self) -> Array:
        """The means over runs, `(methods, cases, metrics)`."""
        return np.stack([np.asarray(runs, float).mean(0) for runs in self.values])


def sum_rank_with_interval(datasets: Sequence[RankedCases], higher_is_better: ArrayLike) -> list[Estimate]:
    """Return the `sum_rank` of the means over common cases and its 95 % percentile bootstrap interval.

    Each resample draws as many patients of a population as there are, and as many runs of a method's networks, with
    replacement: the same for all data sets that share them.

    Args:
        datasets: What is ranked, with the same methods and metrics; ranks are summed over all.
        higher_is_better: `(metrics,)`.

    Returns:
        One estimate per method, without an interval if too few patients of one of the data sets have a value of every
        method in one of the metrics.
    """
    methods = len(datasets[0].values)
    totals, resampled = np.zeros(methods), np.zeros((methods, 1))
    for dataset in datasets:
        totals = totals + sum_rank(means_over_common_cases(dataset.of_methods), higher_is_better)
        resampled = resampled + _resampled_sum_ranks(dataset, higher_is_better)
    fewest = min(_fewest_patients(dataset) for dataset in datasets)
    return [Estimate(float(total), *percentiles(ranks, fewest)) for total, ranks in zip(totals, resampled, strict=True)]


def _fewest_patients(dataset: RankedCases) -> int:
    """Return the number of patients with a value of every method, of the metric that has the fewest."""
    lacking = np.isnan(dataset.of_methods)  # (methods, cases, metrics)
    patients = np.asarray(dataset.patients)
    return min(len(set(patients[~of_metric.any(0)])) for of_metric in np.moveaxis(lacking, 2, 0))


def _resampled_sum_ranks(dataset: RankedCases, higher_is_better: ArrayLike) -> Array:
    """Return the sum-ranks on a data set in each resample, `(methods, resamples)`."""
    names, index = np.unique(np.asarray(dataset.patients), return_inverse=True)
    by_patient = (index == np.arange(len(names))[:, None]).astype(float)  # (patients, cases)
    common = ~np.isnan(dataset.of_methods).any(0)  # (cases, metrics)
    weights = draw_weights(len(names), PATIENTS, dataset.population)
    counts = weights @ (by_patient @ common)
    means = []
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, which ranks all methods alike
        for place, runs in enumerate(dataset.values):
            drawn = np.ones((1, 1))
            if len(runs) > 1:
                drawn = draw_weights(len(runs), RUNS, dataset.networks, place) / len(runs)
            sums = [weights @ (by_patient @ np.where(common, run, 0)) for run in runs]
            means.append(sum(drawn[:, number, None] * of_run for number, of_run in enumerate(sums)) / counts)
    stacked = np.stack(means)  # (methods, resamples, metrics)
    ranks = column_ranks(stacked.reshape(methods := len(stacked), -1), np.tile(higher_is_better, len(weights)))
    return ranks.reshape(methods, *stacked.shape[1:]).sum(2)


def case_ranks(values: ArrayLike, higher_is_better: ArrayLike) -> Array:
    """Rank the methods on each case and metric.

    Args:
        values: `(methods, cases, metrics)`. An undefined value (NaN) ranks last.
        higher_is_better: `(metrics,)`.

    Returns:
        `(methods, cases, metrics)`: 1 is best, ties share the mean rank; NaN where no method has a value.
    """
    values = np.asarray(values, float)
    methods, cases, metrics = values.shape
    columns = values.reshape(methods, cases * metrics)
    ranks = column_ranks(columns, np.tile(higher_is_better, cases))
    ranks[:, np.isnan(columns).all(0)] = np.nan
    return ranks.reshape(values.shape)


def means_over_common_cases(values: ArrayLike) -> Array:
    """Return the mean of each metric over the cases where every method has a value: means that can be ranked fairly.

    Args:
        values: `(methods, cases, metrics)`.

    Returns:
        `(methods, metrics)`; NaN where there is no such case.
    """
    values = np.asarray(values, float)
    common = np.where(np.isnan(values).any(0), np.nan, values)
    return mean_of_defined(common.swapaxes(0, 1))


def mean_case_rank_with_interval(
    values: ArrayLike, higher_is_better: ArrayLike, groups: Sequence[str]
) -> list[Estimate]:
    """Return the mean of each method's ranks over all cases and metrics, and its 95 % bootstrap interval over patients.

    Args:
        values: `(methods, cases, metrics)`, as in `case_ranks`.
        higher_is_better: `(metrics,)`.
        groups: The group of each case, as in `mean_with_interval`.

    Returns:
        One estimate per method.
    """
    ranks = case_ranks(values, higher_is_better)
    repeated = [group for group in groups for _ in range(ranks.shape[2])]  # a case has one rank per metric
    return [mean_with_interval(of_method.flatten(), repeated) for of_method in ranks]
