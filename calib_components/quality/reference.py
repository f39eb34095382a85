"""What labelled validation scans gave: the yardstick of the estimates of new scans, stored in the
weights.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from calib_components.errors import InputError
from calib_components.quality.ranking import BAD, MIN_PATIENTS, rank_scans

Array = NDArray[np.float64]
LEVEL = 0.9  # of the limits
LIMIT_PATIENTS = 9  # of the limits, LEVEL / (1 - LEVEL); with fewer there are none
MIN_BAD = 5  # scans of an area under the ROC curve
LOWEST_DENOMINATOR = 1e-12  # in place of 0
UNDEFINED = -1.0  # in the weights, which hold finite numbers only
TOO_FEW = (
    "DSC and volume have no limits, which need {minimum} validation patients: there are {count}."
)
LIMITS = (
    "Limits are made to hold for 90 % of new patients like the {count} validation patients, for"
    " each structure by itself. With so many patients, the true share lies between {low:.0%} and"
    " {high:.0%} (95 %). Limits are optimistic if these patients also chose the epoch or fitted the"
    " calibration of the network, and promise nothing on images of another scanner."
)
FEWER = " Only {count} of them count for {structure}; below {minimum}, it has no limits."
SCANS = (
    "On {scans} labelled scans like those of the training (others give less, where these chose the"
    " epoch or the network), "
)
GAP_CLOSED = (
    "this order closed {gap:.0%} of the gap between a random and the perfect order"
    " [{low:.0%}, {high:.0%}]."
)
NOT_SHOWN = (
    "this order was not shown to be better than chance: it closed {gap:.0%} of the gap to the"
    " perfect order [{low:.0%}, {high:.0%}]."
)
BIAS = " The expected DSC minus the true one was {bias:+.3f} on average."
ROC = (
    " The area under the ROC curve for a DSC below {bad} was {roc:.2f} [{low:.2f}, {high:.2f}];"
    " scans with it: {count}."
)


def mean_estimate(expected_dsc: Mapping[str, float], always: Collection[str]) -> float:
    """Return the estimate of a scan, the mean over its structures; NaN without any.

    A structure that is not predicted, 0 or NaN, counts as 0 if it is among those that are `always`
    there.
    """
    counted = [
        value if value > 0 else 0.0
        for name, value in expected_dsc.items()
        if value > 0 or name in always
    ]
    return sum(counted) / len(counted) if counted else math.nan


@dataclass(frozen=True, eq=False)
class Reference:
    """Estimates of labelled scans beside the truth, and what follows from them for a new scan.

    The limits are split-conformal: each holds with a probability of at least 90 % for a new patient
    who is exchangeable with these, for one structure. Of a patient with several scans, the worst
    counts. They need at least nine patients. Source: Lei et al., "Distribution-Free Predictive
    Inference for Regression", JASA 2018.

    Attributes:
        structures: Names of the structures.
        values: For each scan and structure the number that stands for the patient; estimated and
            true DSC, NaN for a structure in neither prediction nor label; expected and true volume,
            in any unit; `(scans, structures, 5)`.
    """

    structures: Sequence[str]
    values: Array

    @classmethod
    def from_scans(
        cls, structures: Sequence[str], patients: Sequence[str], values: ArrayLike
    ) -> Reference:
        """Make the reference from the patient of each scan and the other values, `(scans,
        structures, 4)`.
        """
        expected, dsc, *volumes = np.moveaxis(np.asarray(values, float), -1, 0)
        numbers = np.unique(patients, return_inverse=True)[1][:, None] * np.ones_like(dsc)
        expected = np.where(np.isnan(dsc), np.nan, np.nan_to_num(expected))
        return cls(structures, np.stack([numbers, expected, dsc, *volumes], -1))

    @classmethod
    def from_tensor(cls, values: torch.Tensor, structures: Sequence[str]) -> Reference:
        """Inverse of `to_tensor`. An empty tensor is that of weights without validation scans."""
        table = values.double().cpu().numpy()
        if not table.size:
            table = np.empty((0, len(structures), 5))
        if table.shape[1:] != (len(structures), 5):
            raise InputError(
                f"The reference in the weights is {table.shape}, not (scans, {len(structures)}"
                " structures, 5 values)."
            )
        return cls(structures, np.where(table == UNDEFINED, np.nan, table))

    def to_tensor(self) -> torch.Tensor:
        """Return the values for the weights.

        The names of the structures are in `facts.yaml` beside them.
        """
        # A GPU of Apple has no float64
        return torch.from_numpy(np.nan_to_num(self.values, nan=UNDEFINED)).float()

    @property
    def always(self) -> list[str]:
        """Structures that are in every one of the scans; all structures without any scan."""
        return [
            name
            for name, volumes in zip(self.structures, self.values[..., 4].T, strict=True)
            if volumes.all()
        ]

    @property
    def patients(self) -> int:
        """Number of patients."""
        return len(np.unique(self.values[:, 0, 0]))

    def count_patients(self, structure: str) -> int:
        """Return the number of patients that the limits of a structure are of."""
        dsc = self._of(structure)[1]
        return len(np.unique(self.values[~np.isnan(dsc), 0, 0]))

    @cached_property
    def estimates(self) -> Array:
        """Estimate of each scan, see `mean_estimate`, `(scans,)`."""
        rows = (dict(zip(self.structures, row, strict=True)) for row in self.values[..., 1])
        return np.array([mean_estimate(row, self.always) for row in rows])

    @cached_property
    def note(self) -> str:
        """What a reader has to know of the limits."""
        count = self.patients
        if count < LIMIT_PATIENTS:
            return TOO_FEW.format(minimum=LIMIT_PATIENTS, count=count)
        low, high = coverage_of(count).interval(0.95)
        note = LIMITS.format(count=count, low=low, high=high)
        for structure in self.structures:
            fewer = self.count_patients(structure)
            if fewer < count:
                note += FEWER.format(structure=structure, count=fewer, minimum=LIMIT_PATIENTS)
        return note

    @cached_property
    def evidence(self) -> str:
        """What these scans say of the estimates; empty with too few patients for an interval."""
        if self.patients < MIN_PATIENTS:
            return ""
        # Where nothing is predicted, the estimate is 0, as on the page
        estimates = np.nan_to_num(self.estimates)
        dsc = np.ma.masked_invalid(self.values[..., 2]).mean(-1).filled(np.nan)
        defined = ~np.isnan(dsc)
        estimates, dsc = estimates[defined], dsc[defined]
        if len(dsc) == 0 or np.ptp(dsc) < 1e-6:  # there is no order
            return ""
        ranking = rank_scans(estimates, dsc, self.values[defined, 0, 0])
        gap, low, high = ranking.gap_closed
        if math.isnan(low):
            return ""
        template = GAP_CLOSED if low > 0 else NOT_SHOWN
        text = SCANS.format(scans=len(dsc)) + template.format(gap=gap, low=low, high=high)
        text += BIAS.format(bias=(estimates - dsc).mean())
        count = (dsc < BAD).sum()
        if count >= MIN_BAD and not math.isnan(ranking.roc[0]):
            roc, low, high = ranking.roc
            text += ROC.format(bad=BAD, roc=roc, low=low, high=high, count=count)
        return text

    def lower_bound(self, structure: str, estimate: ArrayLike) -> Any:
        """Return the lower bound of the DSC, `estimate - q (1 - estimate)`, from 0 to 1, of one
        estimate or an array, in its shape; NaN with too few patients.

        `q` is a quantile of the residuals `(estimate - DSC) / (1 - estimate)` of these scans.
        """
        estimates, dsc, _, _ = self._of(structure)
        quantile = self._quantile((estimates - dsc) / np.maximum(1 - estimates, LOWEST_DENOMINATOR))
        estimate = np.asarray(estimate, float)
        return np.maximum(0, estimate - quantile * np.maximum(1 - estimate, LOWEST_DENOMINATOR))

    def volume_range(self, structure: str, expected: ArrayLike) -> tuple[Any, Any]:
        """Return the range of the volume, `expected (1 - q)` to `expected (1 + q)`, of one or an
        array; NaN with too few patients.

        `q` is a quantile of `|expected - true| / expected` of these scans.
        """
        _, dsc, predicted, true = self._of(structure)
        quantile = self._quantile(
            np.abs(predicted - true) / np.maximum(predicted, LOWEST_DENOMINATOR) + 0 * dsc
        )
        expected = np.asarray(expected, float)
        return expected * np.maximum(0, 1 - quantile), expected * (1 + quantile)

    def _of(self, structure: str) -> Array:
        """Return estimated and true DSC, expected and true volume of a structure, `(4, scans)`."""
        return self.values[:, list(self.structures).index(structure), 1:].T

    def _quantile(self, residuals: Array) -> float:
        """The conformal quantile over patients of the largest residual of each; NaN with too few of
        them.
        """
        defined = ~np.isnan(residuals)
        patients = self.values[defined, 0, 0]
        worst = sorted(
            residuals[defined][patients == patient].max() for patient in np.unique(patients)
        )
        rank = _rank(len(worst))
        return float(worst[rank - 1]) if rank <= len(worst) else math.nan

    def place(self, estimate: float) -> tuple[int, int]:
        """Return how many of these scans have a higher estimate, see `mean_estimate`, and the
        number of scans.
        """
        return int((self.estimates > estimate).sum()), len(self.values)


def coverage_of(count: int) -> Any:
    """Return the distribution of the share of new patients for whom a limit of `count` patients
    holds, if they are exchangeable.

    Source: Vovk, "Conditional validity of inductive conformal predictors", ACML 2012.
    """
    return stats.beta(_rank(count), count + 1 - _rank(count))


def holding_patients(count: int, new: int) -> tuple[int, int]:
    """Return for how many of `new` patients a limit of `count` patients holds, with a probability
    of 95 %, if they are exchangeable.
    """
    low, high = stats.betabinom(new, _rank(count), count + 1 - _rank(count)).interval(0.95)
    return int(low), int(high)


def _rank(count: int) -> int:
    """Return which of the residuals of `count` patients in order is the limit."""
    return math.ceil(LEVEL * (count + 1) - 1e-9)  # 0.9 * 10 is 9
