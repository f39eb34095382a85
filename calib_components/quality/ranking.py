"""Which segmentations to check by the estimates of their quality, and whether these order them as
their DSC does.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]

BAD, SHARE = 0.7, 0.2  # DSC below which a segmentation is bad; share of the scans that are reviewed
RESAMPLES, SEED = 1000, 0
MIN_PATIENTS = 6  # of an interval; with five, a test by signs cannot go below p = 2 / 2^5 = 0.0625


class Ranking(NamedTuple):
    """How estimates order scans, see `rank_scans`; of each, the value and the ends of its 95 %
    interval over patients, `(3,)`.

    Attributes:
        gap_closed: `(random - AURC) / (random - optimal)`: 1 for the order of the DSC, 0 by chance.
            AURC is the area under the risk-coverage curve: the mean over i of the mean of 1 - DSC
            of the i best estimates.
        roc: Area under the ROC curve for DSC below `bad`, 0.7; NaN where no or every scan is, as
            the next one.
        found: Share of these scans that are among the 20 % with the lowest estimates.
        spearman: Spearman's rank correlation of estimate and DSC.
        aurc: The area, as above.
    """

    gap_closed: Array
    roc: Array
    found: Array
    spearman: Array
    aurc: Array


def is_listed(
    estimates: ArrayLike, share: float = SHARE, threshold: float = math.nan
) -> NDArray[np.bool_]:
    """Return which scans a person should check, `(scans,)`: the share with the lowest estimates,
    see `count_share`, and those with an estimate below a threshold. NaN is the lowest estimate.
    """
    values = np.nan_to_num(np.asarray(estimates, float))
    is_low = values < threshold
    is_low[np.argsort(values, kind="stable")[: count_share(share, len(values))]] = True
    return is_low


def count_share(share: float, scans: int) -> int:
    """Return a share of scans, rounded up; 0 if it is less than one scan."""
    number = round(share * scans, 9)
    return math.ceil(number) if number >= 1 else 0


def rank_scans(
    estimates: ArrayLike, dsc: ArrayLike, patients: ArrayLike, bad: float = BAD
) -> Ranking:
    """Compare estimates, which are higher for better segmentations, with the DSC of the same scans.

    Where estimates are equal, values are the mean over all orders of these scans. Scans without
    either (NaN) are left out. There are no intervals (NaN) with fewer than six patients.
    """
    estimate, true = np.asarray(estimates, float), np.asarray(dsc, float)
    defined = ~np.isnan(estimate) & ~np.isnan(true)
    estimate, true = estimate[defined], true[defined]
    names = np.asarray(patients)[defined]
    scans = [np.flatnonzero(names == name) for name in np.unique(names)]
    ends = np.full((2, len(Ranking._fields)), np.nan)
    if len(scans) >= MIN_PATIENTS:
        draws = np.random.default_rng(SEED).integers(len(scans), size=(RESAMPLES, len(scans)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # in some draws, no scan is below 0.7
            drawn = (np.concatenate([scans[i] for i in row]) for row in draws)
            values = [order(estimate[each], true[each], bad) for each in drawn]
            ends = np.nanquantile(values, [0.025, 0.975], axis=0)
    return Ranking(*np.stack([order(estimate, true, bad), *ends], 1))


def order(estimates: Array, dsc: Array, bad: float = BAD) -> Array:
    """Return the values of a `Ranking`, without intervals; see `rank_scans`."""
    number, risk, is_bad = len(dsc), 1 - dsc, (dsc < bad).astype(float)
    best_first = np.argsort(-estimates)
    _, group, sizes = np.unique(-estimates[best_first], return_inverse=True, return_counts=True)

    def ordered(values: Array) -> Array:  # equal estimates have the mean of their values
        return (np.bincount(group, values[best_first]) / sizes)[group]

    kept, count = np.arange(1, number + 1), is_bad.sum()
    aurc, optimal = ((values.cumsum() / kept).mean() for values in (ordered(risk), np.sort(risk)))
    ranks = stats.rankdata(estimates)
    reviewed = ordered(is_bad)[number - int(SHARE * number + 0.5) :]
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = (risk.mean() - aurc) / (risk.mean() - optimal)
        roc = 1 - (ranks @ is_bad - count * (count + 1) / 2) / (count * (number - count))
        found = reviewed.sum() / count if count < number else np.nan
        spearman = np.corrcoef(ranks, stats.rankdata(dsc))[0, 1] if number > 1 else np.nan
        return np.array([gap, roc, found, spearman, aurc])
