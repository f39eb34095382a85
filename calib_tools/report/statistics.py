"""Means and paired differences over cases, with 95 % intervals and tests.

Cases of a patient depend on each other, so patients are resampled, not cases. Intervals are
percentiles of a bootstrap over patients, and tests flip the signs of patients: both are about these
trained networks. Fewer than six patients (`MIN_PATIENTS`) have neither. Whether a network is
calibrated is tested from two patients on, see `CalibrationGap`.

Undefined values are NaN. Means leave them out. `patients` are the patient of each case.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from calib_components.metrics.intervals import (
    RESAMPLES,
    SEED,
    Estimate,
    interval,
    sums_of_patients,
)
from calib_components.quality.ranking import MIN_PATIENTS
from calib_components.quality.shift import holm

Array = NDArray[np.float64]
Key = TypeVar("Key", bound=Hashable)

LEVEL = 0.95
ENOUGH_PATIENTS = 20  # to say whether a network is calibrated
# These two limit how often `CalibrationGap` accuses a calibrated network, in simulations
PARTS = 5  # of a patient's voxels, each right or wrong as a whole
SPREAD = 0.05  # a standard deviation that is smaller is no evidence


def paired_difference(values: ArrayLike, reference: ArrayLike, patients: Sequence[str]) -> Estimate:
    """Compare two evaluations of the same cases, `(cases,)` each.

    Returns:
        The mean of `values - reference` over the cases where both are defined, its interval, and
        the p-value of it being 0.
    """
    differences = np.asarray(values, float) - np.asarray(reference, float)
    p_value = sign_flip_p_value(differences, patients)
    return interval(differences, patients)._replace(p_value=p_value)


def sign_flip_p_value(values: ArrayLike, patients: Sequence[str]) -> float:
    """Test whether the mean of `(cases,)` is 0, by changing signs of patients.

    All values of a patient change sign together, so they may depend on each other. Where a few
    patients are far off to one side, the test rejects too often: in simulations with a tenth of 16
    patients far off, in 15 to 20 % of comparisons. Undefined cases (NaN) are left out. The p-value
    is exact for up to 13 patients, and NaN with fewer than `MIN_PATIENTS`.

    Source: Fisher, "The Design of Experiments", 1935.
    """
    sums = sums_of_patients(values, patients)[:, 0]
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
        confidence: Mean confidence of each case, `(cases,)`.
        accuracy: Their accuracy, `(cases,)`.
        patients: The patient of each case.

    Attributes:
        confidence: Mean over patients.
        accuracy: Mean over patients.
        mean: Their difference.
        spread: Standard deviation of the differences of patients; NaN for one.
        patients: Number of patients who have a case with both.
    """

    def __init__(self, confidence: ArrayLike, accuracy: ArrayLike, patients: Sequence[str]) -> None:
        cases = pd.DataFrame(np.transpose([confidence, accuracy]), np.asarray(patients))
        means = cases.dropna().groupby(level=0).mean().clip(0, 1)
        gaps = (means[0] - means[1]).round(9)  # equal up to rounding is equal
        self.patients = len(means)
        self.confidence, self.accuracy = means.mean().tolist()
        self.mean, self.spread = float(gaps.mean()), float(gaps.std())
        if self.patients < 2:
            return
        p, shape = means[0].to_numpy(), (RESAMPLES, self.patients)
        drawn = p - np.random.default_rng(SEED).binomial(PARTS, p, shape) / PARTS
        self._scale = self._scale_of(self.spread)
        self._drawn_t = drawn.mean(1) / self._scale_of(drawn.std(1, ddof=1))

    def _scale_of(self, spread: Any) -> Any:
        """Return the standard error of a mean from the standard deviation of the patients."""
        return np.maximum(spread / self.patients**0.5, 1e-9) + SPREAD / self.patients**2

    @property
    def p_value(self) -> float:
        """The p-value of the mean being 0; NaN with one patient."""
        if self.patients < 2:
            return math.nan
        t = self.mean / self._scale
        student = stats.t.sf(abs(t), self.patients - 1)
        drawn = min((self._drawn_t >= t).mean(), (self._drawn_t <= t).mean())
        return float(min(1, 2 * max(student, drawn)))

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
            return ENOUGH_PATIENTS - self.patients
        wanted = max(abs(self.mean), margin - abs(self.mean))
        needed = (stats.norm.ppf((1 + LEVEL) / 2) * self.spread / wanted) ** 2
        return max(2, math.ceil(needed) - self.patients)


def correct_gaps(gaps: Mapping[Key, CalibrationGap]) -> dict[Key, Estimate]:
    """Return the estimates of gaps that are tested together, Holm-corrected: an interval leaves out
    0 where the p-value is below 0.05.
    """
    p_values = [gap.p_value for gap in gaps.values()]
    corrected = zip(gaps.items(), holm(p_values), _holm_levels(p_values), strict=True)
    return {
        key: gap.estimate(level)._replace(p_value=p_value)
        for (key, gap), p_value, level in corrected
    }


def _holm_levels(p_values: Sequence[float]) -> Array:
    """Return the level of the interval of each of some tests that are made together."""
    count = len(p_values)
    order = np.argsort(p_values)
    alphas = (1 - LEVEL) / np.arange(count, 0, -1)
    is_rejected = np.asarray(p_values)[order] < alphas
    if not is_rejected.all():  # the steps end at the first test that is not rejected
        alphas = alphas.clip(max=alphas[is_rejected.argmin()])
    levels = np.empty(count)
    levels[order] = 1 - alphas
    return levels
