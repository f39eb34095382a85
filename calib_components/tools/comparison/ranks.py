"""Ranks of methods: of their means, as the paper has them, and on single cases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from calib_components.tools.comparison.statistics import (
    Array,
    Estimate,
    draw_weights,
    mean_of_defined,
    mean_with_interval,
    percentiles,
)

__all__ = [
    "case_ranks",
    "column_ranks",
    "mean_case_rank",
    "mean_case_rank_with_interval",
    "means_over_common_cases",
    "sum_rank",
    "sum_rank_over_datasets",
    "sum_rank_with_interval",
]

RUNS = 1  # streams of random numbers for runs have one number more than those for the patients of a data set


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


def sum_rank_with_interval(
    values: Sequence[Array], higher_is_better: ArrayLike, groups: Sequence[str], seed: int = 0
) -> list[Estimate]:
    """Return the `sum_rank` of the means over common cases and its 95 % percentile bootstrap interval.

    Args:
        values: `(runs, cases, metrics)` of each method: runs are its trainings, of which each resample draws as many
            as there are. A value that is undefined (NaN) in one run counts as undefined in all.
        higher_is_better: `(metrics,)`.
        groups: The group of each case, as in `mean_with_interval`.
        seed: Seed of the resampling.

    Returns:
        One estimate per method.
    """
    return sum_rank_over_datasets([values], higher_is_better, [groups], seed)


def sum_rank_over_datasets(
    values: Sequence[Sequence[Array]], higher_is_better: ArrayLike, groups: Sequence[Sequence[str]], seed: int = 0
) -> list[Estimate]:
    """Return the `sum_rank` over the columns of several data sets and its 95 % percentile bootstrap interval.

    Args:
        values: Of each data set, as in `sum_rank_with_interval`. Patients of each are drawn by themselves; runs of a
            method, where there are as many, are drawn together, since they can be the same networks.
        higher_is_better: `(metrics,)`.
        groups: Of each data set, the group of each case.
        seed: Seed of the resampling.

    Returns:
        One estimate per method; without an interval if a data set has too few groups for one.
    """
    totals, resampled = np.zeros(len(values[0])), np.zeros((len(values[0]), 1))
    for position, (of_dataset, of_cases) in enumerate(zip(values, groups, strict=True)):
        total, ranks = _resampled_sum_ranks(of_dataset, higher_is_better, of_cases, seed, position)
        totals, resampled = totals + total, resampled + ranks
    fewest = min(len(set(of_cases)) for of_cases in groups)
    return [Estimate(float(total), *percentiles(ranks, fewest)) for total, ranks in zip(totals, resampled, strict=True)]


def _resampled_sum_ranks(
    values: Sequence[Array], higher_is_better: ArrayLike, groups: Sequence[str], seed: int, position: int
) -> tuple[Array, Array]:
    """Return the sum-ranks on a data set, `(methods,)`, and those of each resample, `(methods, resamples)`."""
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    by_group = (index == np.arange(len(names))[:, None]).astype(float)  # (groups, cases)
    of_methods = np.stack([np.asarray(runs, float).mean(0) for runs in values])  # NaN where one run has none
    common = ~np.isnan(of_methods).any(0)  # (cases, metrics)
    weights = draw_weights(len(names), *([seed, position] if position else [seed]))
    counts = weights @ (by_group @ common)
    means = []
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, which ranks all methods alike
        for place, runs in enumerate(values):
            drawn = draw_weights(len(runs), seed, RUNS, place) / len(runs) if len(runs) > 1 else np.ones((1, 1))
            sums = [weights @ (by_group @ np.where(common, run, 0)) for run in runs]
            means.append(sum(drawn[:, number, None] * of_run for number, of_run in enumerate(sums)) / counts)
    stacked = np.stack(means)  # (methods, resamples, metrics)
    columns = stacked.reshape(len(stacked), -1)
    ranks = column_ranks(columns, np.tile(higher_is_better, len(weights))).reshape(stacked.shape).sum(2)
    return sum_rank(means_over_common_cases(of_methods), higher_is_better), ranks


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


def mean_case_rank(values: ArrayLike, higher_is_better: ArrayLike) -> Array:
    """Return the mean of each method's ranks over all cases and metrics, `(methods,)`. Arguments as in `case_ranks`."""
    ranks = case_ranks(values, higher_is_better)
    return mean_of_defined(ranks.reshape(len(ranks), -1).T)


def mean_case_rank_with_interval(
    values: ArrayLike, higher_is_better: ArrayLike, groups: Sequence[str], seed: int = 0
) -> list[Estimate]:
    """Return `mean_case_rank` and its 95 % percentile bootstrap interval. Arguments as in `sum_rank_with_interval`."""
    ranks = case_ranks(values, higher_is_better)
    repeated = [group for group in groups for _ in range(ranks.shape[2])]  # a case has one rank per metric
    return [mean_with_interval(of_method.flatten(), repeated, seed) for of_method in ranks]
