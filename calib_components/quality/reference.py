"""What labelled validation scans gave: the yardstick of the estimates of new scans, stored in the
weights.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from calib_components.errors import InputError

Array = NDArray[np.float64]
LEVEL = 0.9  # of the limits
MIN_PATIENTS = 9  # of the limits, LEVEL / (1 - LEVEL); with fewer there are none
SMALLEST = 1e-12  # in place of 0, below a fraction
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
        table = (
            values.double().cpu().numpy() if values.numel() else np.empty((0, len(structures), 5))
        )
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
    def note(self) -> str:
        """What a reader has to know of the limits."""
        patients = len(np.unique(self.values[:, 0, 0]))
        if patients < MIN_PATIENTS:
            count = f"{MIN_PATIENTS} validation patients: there are {patients}"
            return f"DSC and volume have no limits, which need {count}."
        return (
            f"Limits hold with 90 % probability for a new patient like the {patients} validation"
            " patients, for each structure by itself. They are optimistic if these patients also"
            " chose the epoch or fitted the calibration of the network, and promise nothing on"
            " images of another scanner."
        )

    def lower_bound(self, structure: str, estimate: float) -> float:
        """Return the lower bound of the DSC, `estimate - q (1 - estimate)`; NaN with too few
        patients.

        `q` is a quantile of the residuals `(estimate - DSC) / (1 - estimate)` of these scans.
        """
        estimates, dsc = self.values[:, list(self.structures).index(structure), 1:3].T
        quantile = self._quantile((estimates - dsc) / np.maximum(1 - estimates, SMALLEST))
        return float(np.maximum(0, estimate - quantile * max(1 - estimate, SMALLEST)))

    def volume_range(self, structure: str, expected: float) -> tuple[float, float]:
        """Return the range of the volume, `expected (1 - q)` to `expected (1 + q)`; NaN with too
        few patients.

        `q` is a quantile of `|expected - true| / expected` of these scans.
        """
        _, dsc, predicted, true = self.values[:, list(self.structures).index(structure), 1:].T
        quantile = self._quantile(
            np.abs(predicted - true) / np.maximum(predicted, SMALLEST) + 0 * dsc
        )
        return float(expected * np.maximum(0, 1 - quantile)), expected * (1 + quantile)

    def _quantile(self, residuals: Array) -> float:
        """The conformal quantile over patients of the largest residual of each; NaN with too few of
        them.
        """
        defined = ~np.isnan(residuals)
        patients = self.values[defined, 0, 0]
        worst = sorted(
            residuals[defined][patients == patient].max() for patient in np.unique(patients)
        )
        rank = math.ceil(LEVEL * (len(worst) + 1) - 1e-9)  # 0.9 * 10 is 9
        return float(worst[rank - 1]) if rank <= len(worst) else math.nan

    def place(self, estimate: float) -> tuple[int, int]:
        """Return how many of these scans have a higher estimate, see `mean_estimate`, and the
        number of scans.
        """
        rows = (dict(zip(self.structures, row, strict=True)) for row in self.values[..., 1])
        return sum(mean_estimate(row, self.always) > estimate for row in rows), len(self.values)
