"""What labelled validation scans gave: the yardstick of the estimates of new scans, stored in the
weights.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from calib_components.errors import InputError

Array = NDArray[np.float64]
LEVEL = 0.9  # of the limits
LIMIT_PATIENTS = 9  # of the limits, LEVEL / (1 - LEVEL); with fewer there are none
LOWEST_SHARE = 0.1  # of the validation scans: a new one with a lower estimate is checked
LOWEST_DENOMINATOR = 1e-12  # in place of 0
ALL_DSC, ALL_VOLUMES = "DSC of all structures", "all volumes"
UNDEFINED = -1.0  # in the weights, which hold finite numbers only


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


class Coverage(NamedTuple):
    """For how many patients a limit holds in all of their scans.

    Attributes:
        held: Number of patients for whom it holds.
        patients: Number of patients.
        expected: The ends of the interval in which `held` lies with a probability of 95 %, if the
            patients are like those of the reference; None if it is not known.
    """

    held: int
    patients: int
    expected: tuple[int, int] | None = None

    @property
    def fails(self) -> bool:
        """Whether it holds for fewer patients than expected."""
        return self.expected is not None and self.held < self.expected[0]

    def __str__(self) -> str:
        expected = "" if self.expected is None else " ({} to {})".format(*self.expected)
        return f"{self.held} of {self.patients}{expected}"


def volume_of(structure: str) -> str:
    """Return the name of the limit that is the range of the volume of a structure."""
    return f"{structure} volume"


@dataclass(frozen=True, eq=False)
class Reference:
    """Estimates of labelled scans beside the truth, and what follows from them for a new scan.

    The limits are split-conformal: they hold with a probability of at least 90 % for a new patient
    who is exchangeable with these. Those of the DSC hold for all structures of a scan together,
    that of a volume by itself. Of a patient with several scans, the worst counts. They need at
    least nine patients. Source: Lei et al., "Distribution-Free Predictive Inference for
    Regression", JASA 2018.

    Attributes:
        structures: Names of the structures.
        values: For each scan and structure the number that stands for the patient; estimated and
            true DSC, NaN for a structure in neither prediction nor label; expected and true volume,
            in any unit; `(scans, structures, 5)`.
        tests: Labelled scans that chose neither network nor calibrator, by the name of their set.
    """

    structures: Sequence[str]
    values: Array
    tests: Mapping[str, Reference] = field(default_factory=dict)

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
    def from_tensor(
        cls,
        values: torch.Tensor,
        structures: Sequence[str],
        tests: Mapping[str, torch.Tensor] | None = None,
    ) -> Reference:
        """Inverse of `to_tensor`. An empty tensor is that of weights without validation scans."""
        table = values.double().cpu().numpy()
        if not table.size:
            table = np.empty((0, len(structures), 5))
        if table.shape[1:] != (len(structures), 5):
            raise InputError(
                f"The reference in the weights is {table.shape}, not (scans, {len(structures)}"
                " structures, 5 values)."
            )
        tested = {name: cls.from_tensor(each, structures) for name, each in (tests or {}).items()}
        return cls(structures, np.where(table == UNDEFINED, np.nan, table), tested)

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
        return len(np.unique(self.patient_numbers))

    @property
    def patient_numbers(self) -> Array:
        """The number that stands for the patient of each scan, `(scans,)`."""
        return self.values[:, 0, 0]

    @cached_property
    def estimates(self) -> Array:
        """Estimate of each scan, see `mean_estimate`, `(scans,)`."""
        return self.estimate(self)

    def estimate(self, scans: Reference) -> Array:
        """Return the estimates of other labelled scans, as these are the validation scans."""
        rows = (dict(zip(self.structures, row, strict=True)) for row in scans.values[..., 1])
        return np.array([mean_estimate(row, self.always) for row in rows])

    @cached_property
    def dsc(self) -> Array:
        """Mean true DSC of each scan, `(scans,)`; NaN where no structure is predicted or true."""
        return np.ma.masked_invalid(self.values[..., 2]).mean(-1).filled(np.nan)

    @cached_property
    def lowest_estimate(self) -> float:
        """The 10 % quantile of the estimates; NaN without scans."""
        if not len(self.values):
            return math.nan
        return float(np.quantile(np.nan_to_num(self.estimates), LOWEST_SHARE))

    def lower_bound(self, structure: str, estimate: ArrayLike) -> Any:
        """Return the lower bound of the DSC of a structure, from 0 to 1, of one estimate or an
        array, in its shape; NaN with too few patients.

        The bounds of all structures of a scan hold together. With the residuals `(estimate - DSC) /
        (1 - estimate)` of these scans, the bound is `estimate - q s (1 - estimate)`: `s` is the
        root mean square of the structure's residuals, and `q` a quantile over patients of the
        largest residual over `s`, where `s` is that of the other patients.
        """
        scales, quantile, _ = self._joint_limits
        scale = scales[list(self.structures).index(structure)]
        estimate = np.asarray(estimate, float)
        uncertain = np.maximum(1 - estimate, LOWEST_DENOMINATOR)
        return np.clip(estimate - quantile * scale * uncertain, 0, 1)

    def volume_range(self, structure: str, expected: ArrayLike) -> tuple[Any, Any]:
        """Return the range of the volume, `expected (1 - q)` to `expected (1 + q)`, of one or an
        array; NaN with too few patients.

        `q` is a quantile of `|expected - true| / expected` of these scans.
        """
        number = list(self.structures).index(structure)
        _, dsc, predicted, true = self.values[:, number, 1:].T
        errors = np.abs(predicted - true) / np.maximum(predicted, LOWEST_DENOMINATOR) + 0 * dsc
        quantile = _quantile(self._worst(errors))
        expected = np.asarray(expected, float)
        return expected * np.maximum(0, 1 - quantile), expected * (1 + quantile)

    @cached_property
    def _joint_limits(self) -> tuple[Array, float, int]:
        """The scale of each structure, `(structures,)`, NaN with too few patients, the quantile,
        see `lower_bound`, and the number of patients that it is of.
        """
        estimates, dsc = self.values[..., 1], self.values[..., 2]
        residuals = (estimates - dsc) / np.maximum(1 - estimates, LOWEST_DENOMINATOR)
        worst = np.stack([self._worst(each) for each in residuals.T], 1)  # (patients, structures)
        count = (~np.isnan(worst)).sum(0)
        worst[:, count < LIMIT_PATIENTS] = np.nan
        squares = worst**2
        total = np.nansum(squares, 0)
        is_limited = count >= LIMIT_PATIENTS
        scales = np.sqrt(np.divide(total, count, where=is_limited, out=np.full(len(count), np.nan)))
        others = np.sqrt((total - squares).clip(0) / np.maximum(count - 1, 1))
        scores = worst / np.maximum(others, LOWEST_DENOMINATOR)
        is_scored = ~np.isnan(scores).all(1)
        return scales, _quantile(np.nanmax(scores[is_scored], 1)), int(is_scored.sum())

    def _worst(self, values: Array) -> Array:
        """Return the largest value of each patient, `(patients,)`, of those of the scans,
        `(scans,)`; NaN without one.
        """
        numbers, patients = np.unique(self.patient_numbers, return_inverse=True)
        worst = np.full(len(numbers), np.nan)
        np.fmax.at(worst, patients, values)
        return worst

    def place(self, estimate: float) -> tuple[int, int]:
        """Return how many of these scans have a higher estimate, see `mean_estimate`, and the
        number of scans.
        """
        return int((self.estimates > estimate).sum()), len(self.values)

    def coverage(self, scans: Reference) -> dict[str, Coverage]:
        """Return for how many patients of other labelled scans the limits hold, by name:
        `ALL_DSC`, `volume_of` each structure, and `ALL_VOLUMES`. Without limits, it is empty.
        """
        bounds, ranges = [], []
        for number, structure in enumerate(self.structures):
            _, expected, dsc, expected_volume, volume = scans.values[:, number].T
            low, high = self.volume_range(structure, expected_volume)
            bounds.append(_is_within(dsc, self.lower_bound(structure, expected), 1))
            ranges.append(_is_within(volume + 0 * dsc, low, high))
        *_, count = self._joint_limits
        found = {
            ALL_DSC: scans._count_held(bounds, count),
            **{
                volume_of(name): scans._count_held([held], self._count_patients(name))
                for name, held in zip(self.structures, ranges, strict=True)
            },
            ALL_VOLUMES: scans._count_held(ranges),
        }
        return {name: each for name, each in found.items() if each.patients}

    def _count_patients(self, structure: str) -> int:
        """Return the number of patients that the range of a volume is of."""
        dsc = self.values[:, list(self.structures).index(structure), 2]
        return len(np.unique(self.patient_numbers[~np.isnan(dsc)]))

    def _count_held(self, limits: Sequence[Array], count: int = 0) -> Coverage:
        """Count the patients for whom limits of `count` patients hold in all scans. Each is
        `(scans,)`: 1 where it holds, NaN where there is none.
        """
        missing = np.stack([self._worst(1 - each) for each in limits])
        defined = ~np.isnan(missing).all(0)
        held, patients = int((np.nanmax(missing[:, defined], 0) == 0).sum()), int(defined.sum())
        expected = holding_patients(count, patients) if count and patients else None
        return Coverage(held, patients, expected)


def _is_within(values: Array, low: Array, high: Array | float) -> Array:
    """Return 1 where a value lies within limits, 0 where not, NaN where one is not defined."""
    return np.where((values >= low) & (values <= high), 1.0, 0.0) + 0 * (values + low)


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


def _quantile(values: Array) -> float:
    """Return the conformal quantile of the values of patients, `(patients,)`; NaN with too few."""
    ordered = np.sort(values[~np.isnan(values)])
    rank = _rank(len(ordered))
    return float(ordered[rank - 1]) if rank <= len(ordered) else math.nan


def _rank(count: int) -> int:
    """Return which of the residuals of `count` patients in order is the limit."""
    return math.ceil(LEVEL * (count + 1) - 1e-9)  # 0.9 * 10 is 9
