"""Means and paired differences of methods over cases, with intervals and tests.

A structure that only the ground truth contains (missed) or only the prediction (spurious) has DSC 0 and no HD95; a
structure that neither contains has no value at all. Undefined values are NaN:

- Means leave them out: the value of a case is the mean over the structures that have one. How many structures were
  missed or spurious is reported beside the means.
- Differences and ranks must not reward missing a difficult structure. For these, a case with a missed or spurious
  structure has no HD95 at all: it contributes no difference, and it ranks last. A case in which there is nothing to
  find counts with a DSC of 1 for a method that finds nothing, and has ranks of the DSC alone.

Intervals of one training are over patients: they show how far a number could move with other test patients, not with
another training. Those of several trainings (runs) of a method are over both, by a bootstrap of two levels: each
resample draws as many runs of the method as there are, with replacement, and as many patients, which are the same for
all runs and methods. Few runs tell little: three have 10 different resamples, and the variance among them is on average
two thirds of that among trainings. Fewer than six patients (`FEWEST_PATIENTS`) have neither an interval nor a test,
whatever the number of their cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "FEWEST_PATIENTS",
    "Array",
    "Difference",
    "Estimate",
    "draw_weights",
    "holm",
    "mean_of_defined",
    "mean_with_interval",
    "paired_difference",
    "percentiles",
    "ratio_with_interval",
    "sign_flip_p_value",
    "spearman_with_interval",
]

Array = NDArray[np.float64]

RESAMPLES = 10_000
SEED = 0  # a report is the same each time it is made
LEVEL = 0.95
# With five patients, a test by signs cannot go below p = 2 / 2^5 = 0.0625; with six, 0.03125.
FEWEST_PATIENTS = 6


def mean_of_defined(values: ArrayLike) -> Array:
    """Return the mean over the first axis without NaN; NaN where no value is defined."""
    stacked = np.asarray(values, float)
    count = (~np.isnan(stacked)).sum(0)
    return np.where(count > 0, np.nansum(stacked, axis=0) / np.maximum(count, 1), np.nan)


class Estimate(NamedTuple):
    """A mean over cases, or a statistic of such means, with its 95 % interval."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """Mean difference to a reference on the same cases, its 95 % interval, and the p-value of a test of the mean."""

    mean: float
    low: float
    high: float
    p_value: float
    cases: int


def mean_with_interval(values: ArrayLike, groups: Sequence[str] | None = None) -> Estimate:
    """Return the mean over cases and its 95 % percentile bootstrap interval.

    Cases of one patient are not independent, so whole groups are resampled: as many as there are, with replacement,
    10 000 times; and so are the runs of several trainings, each time for all cases.

    Args:
        values: `(cases,)`, or `(runs, cases)` of several trainings; undefined values (NaN) are left out. The value of
            a case is the mean over the runs that have one.
        groups: The group of each case, such as its patient; None for every case in a group of its own.

    Returns:
        The estimate. The mean is NaN without any defined value, the interval with fewer than `FEWEST_PATIENTS` groups
        that have one.
    """
    runs = np.atleast_2d(np.asarray(values, float))
    return _mean_with_interval(mean_of_defined(runs), _over_drawn_runs(runs, 1), groups)


def _mean_with_interval(of_cases: Array, drawn: Array, groups: Sequence[str] | None) -> Estimate:
    """Return the mean over cases with an interval.

    Args:
        of_cases: `(cases,)`.
        drawn: The same with the runs of each resample, `(resamples, cases)`; `(1, cases)` with one run.
        groups: See `mean_with_interval`.
    """
    defined = ~np.isnan(of_cases)
    labels = np.arange(len(of_cases)) if groups is None else np.asarray(groups)
    names, index = np.unique(labels[defined], return_inverse=True)
    if len(names) == 0:
        return Estimate(np.nan, np.nan, np.nan)
    mean = float(of_cases[defined].mean())
    drawn = drawn[:, defined]
    by_group = (index[:, None] == np.arange(len(names))).astype(float)  # (cases, groups)
    weights = draw_weights(len(names))
    sums, counts = (weights * (part @ by_group) for part in (np.nan_to_num(drawn), (~np.isnan(drawn)).astype(float)))
    counts = counts.sum(1)
    resampled = sums.sum(1)[counts > 0] / counts[counts > 0]
    return Estimate(mean, *percentiles(resampled, len(names)))


def _over_drawn_runs(runs: Array, stream: int) -> Array:
    """Return the values of cases as means over the runs of each resample, `(resamples, cases)`; of one run, its own."""
    if len(runs) == 1:
        return runs
    weights = draw_weights(len(runs), stream)
    counts = weights @ (~np.isnan(runs)).astype(float)
    return np.where(counts > 0, weights @ np.nan_to_num(runs) / np.maximum(counts, 1), np.nan)


def draw_weights(number: int, *stream: int) -> Array:
    """Return how often each of some patients or runs is in each resample, `(resamples, number)`.

    Args:
        number: How many there are.
        stream: Numbers of the stream of random numbers, such as that of the method whose runs are drawn.
    """
    drawn = np.random.default_rng((SEED, *stream)).integers(number, size=(RESAMPLES, number))
    drawn += number * np.arange(RESAMPLES)[:, None]
    return np.bincount(drawn.ravel(), minlength=number * RESAMPLES).reshape(RESAMPLES, number).astype(float)


def percentiles(resampled: Array, groups: int) -> tuple[float, float]:
    """Return the ends of the interval that holds 95 % of the values; NaN with fewer than `FEWEST_PATIENTS` groups."""
    if groups < FEWEST_PATIENTS or len(resampled) == 0:
        return np.nan, np.nan
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def ratio_with_interval(
    numerators: ArrayLike, denominators: ArrayLike, groups: Sequence[str] | None = None
) -> list[Estimate]:
    """Return ratios of sums over cases, such as a sensitivity over the voxels of all cases, with 95 % intervals.

    Groups are resampled as in `mean_with_interval`, the same ones for all ratios. A mean over cases is such a ratio:
    with the values, or 0 where undefined, as numerators, and whether they are defined as denominators.

    Args:
        numerators: `(cases, ratios)`.
        denominators: `(cases, ratios)`, at least 0. A case with 0 for all ratios is left out.
        groups: The group of each case, as in `mean_with_interval`.

    Returns:
        One estimate per ratio: the ratio in place of the mean. It is NaN where all denominators are 0, the interval
        with fewer than `FEWEST_PATIENTS` groups that have one above 0.
    """
    parts = np.stack([np.asarray(numerators, float), np.asarray(denominators, float)])
    defined = parts[1].any(1)
    labels = np.arange(len(defined)) if groups is None else np.asarray(groups)
    names, index = np.unique(labels[defined], return_inverse=True)
    if len(names) == 0:
        return [Estimate(np.nan, np.nan, np.nan)] * parts.shape[2]
    by_group = (index == np.arange(len(names))[:, None]).astype(float)  # (groups, cases)
    sums = by_group @ parts[:, defined]  # (2, groups, ratios)
    weights = draw_weights(len(names))
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        ratios = sums[0].sum(0) / sums[1].sum(0)
        resampled = (weights @ sums[0]) / (weights @ sums[1])
    return [
        Estimate(float(ratio), *percentiles(values[~np.isnan(values)], int(number)))
        for ratio, values, number in zip(ratios, resampled.T, (sums[1] > 0).sum(0), strict=True)
    ]


def paired_difference(
    values: ArrayLike,
    reference: ArrayLike,
    groups: Sequence[str] | None = None,
    same_runs: bool = False,
) -> Difference:
    """Compare two methods on the same cases.

    Args:
        values: `(cases,)`, or `(runs, cases)` of several trainings. A case where either method is undefined (NaN) is
            left out.
        reference: The same of the method to compare with, which may have another number of runs.
        groups: The group of each case, as in `mean_with_interval`.
        same_runs: Whether the runs of both are the same networks, so that they are drawn together.

    Returns:
        The mean of `values - reference` and its interval; the p-value of `sign_flip_p_value` on the differences of
        means over runs, 1 if nothing differs and NaN with fewer than `FEWEST_PATIENTS` groups; and the number of cases
        compared.
    """
    runs, reference_runs = (np.atleast_2d(np.asarray(each, float)) for each in (values, reference))
    if same_runs:
        differences = mean_of_defined(runs - reference_runs)
        drawn = _over_drawn_runs(runs - reference_runs, 1)
    else:
        differences = mean_of_defined(runs) - mean_of_defined(reference_runs)
        drawn = _over_drawn_runs(runs, 1) - _over_drawn_runs(reference_runs, 2)
    p_value = sign_flip_p_value(differences[:, None], groups)
    cases = int((~np.isnan(differences)).sum())
    return Difference(*_mean_with_interval(differences, drawn, groups), p_value, cases)


def sign_flip_p_value(values: ArrayLike, groups: Sequence[str] | None = None) -> float:
    """Test whether the means of several values over cases are all 0.

    If they are, and the values of a group are as often as large to either side, the values of each group could as well
    have the other sign, all together: the values of one group may depend on each other. The statistic is the sum of the
    sizes of the means, compared with all choices of signs or with 10 000 random ones (Fisher, "The Design of
    Experiments", 1935). Where a few groups are far off to one side, and the others a little to the other, it rejects
    too often: in simulations with a tenth of the patients far off, in 15 to 20 % of comparisons of 16 patients.

    Args:
        values: `(cases, K)`. A case with an undefined value (NaN) is left out.
        groups: The group of each case, such as its patient; None for every case in a group of its own.

    Returns:
        The p-value; NaN with fewer than `FEWEST_PATIENTS` groups that have a value.
    """
    values = np.asarray(values, float)
    defined = ~np.isnan(values).any(1)
    labels = np.arange(len(values)) if groups is None else np.asarray(groups)
    names, index = np.unique(labels[defined], return_inverse=True)
    if len(names) < FEWEST_PATIENTS:
        return np.nan
    sums = np.stack([np.bincount(index, weights=column) for column in values[defined].T], axis=1)
    statistic = np.abs(sums.sum(0)).sum() * (1 - 1e-9)  # choices that are equal but for rounding count
    others = len(names) - 1  # the opposite of a choice is as large: the sign of the last group stays
    if 2**others <= RESAMPLES:
        signs = 2.0 * (np.arange(2**others)[:, None] >> np.arange(len(names)) & 1) - 1
        return float((np.abs(signs @ sums).sum(1) >= statistic).mean())
    rng, as_large = np.random.default_rng(SEED), 0
    for draws in [RESAMPLES // 10] * 10:  # memory for a tenth of them
        signs = rng.choice([-1.0, 1.0], size=(draws, len(names)))
        as_large += int((np.abs(signs @ sums).sum(1) >= statistic).sum())
    return (1 + as_large) / (1 + RESAMPLES)


def spearman_with_interval(values: ArrayLike, others: ArrayLike, groups: Sequence[str] | None = None) -> Estimate:
    """Return Spearman's rank correlation of two values of the same cases and its 95 % percentile bootstrap interval.

    Args:
        values: `(cases,)`. A case where either value is undefined (NaN) is left out.
        others: `(cases,)`.
        groups: The group of each case, as in `mean_with_interval`.

    Returns:
        The estimate: the correlation in place of the mean. It is NaN where all values are equal, the interval with
        fewer than `FEWEST_PATIENTS` groups, or where it is NaN in most resamples.
    """
    pair = np.stack([np.asarray(values, float), np.asarray(others, float)])
    defined = ~np.isnan(pair).any(0)
    labels = np.arange(len(defined)) if groups is None else np.asarray(groups)
    names, index = np.unique(labels[defined], return_inverse=True)
    if len(names) == 0:
        return Estimate(np.nan, np.nan, np.nan)
    pair = pair[:, defined]
    correlation = _weighted_spearman(pair, np.ones((1, pair.shape[1])))[0]
    weights = draw_weights(len(names))
    resampled = np.concatenate([_weighted_spearman(pair, part[:, index]) for part in np.array_split(weights, 100)])
    resampled = resampled[~np.isnan(resampled)]
    if np.isnan(correlation) or len(resampled) < RESAMPLES / 2:
        return Estimate(float(correlation), np.nan, np.nan)
    return Estimate(float(correlation), *percentiles(resampled, len(names)))


def _weighted_spearman(pair: Array, weights: NDArray) -> Array:
    """Return the rank correlation of `(2, cases)` with each case taken `(resamples, cases)` times, `(resamples,)`."""
    total = weights.sum(1, keepdims=True)
    centred = []
    for values in pair:
        below = (values[:, None] < values) + 0.5 * (values[:, None] == values)  # up to a constant, ties in the middle
        ranks = weights @ below
        centred.append(ranks - (weights * ranks).sum(1, keepdims=True) / total)
    first, second = centred
    product, *squares = ((weights * a * b).sum(1) for a, b in ((first, second), (first, first), (second, second)))
    scale = np.sqrt(squares[0] * squares[1])
    return np.where(scale > 0, product / np.where(scale > 0, scale, 1), np.nan)


def holm(p_values: ArrayLike) -> Array:
    """Return Holm's step-down adjusted p-values of tests that are made together.

    Args:
        p_values: `(tests,)`; NaN for a test that was not made, which stays NaN and does not count as a test.

    Returns:
        `(tests,)`, in the same order.
    """
    p_values = np.asarray(p_values, float)
    adjusted = np.full(len(p_values), np.nan)
    order = np.argsort(p_values)[: np.count_nonzero(~np.isnan(p_values))]  # NaN sorts last
    stepped = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return adjusted
