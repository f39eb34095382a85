"""A fitted temperature, and what is said of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["HIGHEST", "LOWEST", "TemperatureEstimate"]

LOWEST, HIGHEST = 1 / 8, 8.0  # range that temperatures are fitted in
FEWEST_PATIENTS = 6


@dataclass(frozen=True)
class TemperatureEstimate:
    """A fitted temperature, and how far other patients could move it.

    Attributes:
        temperature: The temperature T with the lowest NLL, from 1/8 to 8; logits are divided by it.
        low: Lower end of its 95 % interval: the percentile bootstrap over patients. NaN with one patient.
        high: Upper end.
        coverage: Share of simulated intervals that hold the true temperature; below 0.95, the interval is too narrow
            for this number of patients. A simulation takes the patients for the whole population, whose temperature is
            `temperature`, draws as many from it with replacement, and computes their interval. NaN with one patient,
            and where `at_edge`.
        leave_one_out: The temperature fitted without each patient; empty with one patient.
        nll_before: Mean negative log-likelihood of the voxels at T = 1, in nats.
        nll_after: The same at the fitted temperature.
        patients: Number of patients with at least one voxel.
        voxels: Number of voxels; with sigmoid, those of all channels.
        at_edge: Whether the NLL has no minimum between 1/8 and 8, so that `temperature` is one of the two.

    Examples:
        >>> from calib_components.posthoc import TemperatureEstimate
        >>> estimate = TemperatureEstimate(1.5, 0.9, 2.1, 0.88, {}, 0.21, 0.18, 8, 4096, False)
        >>> estimate.warnings()
        ['The 95 % interval of the temperature, 0.900 to 2.100, includes 1: scaling may not be needed.']
        >>> estimate.effect()
        'T > 1: the model may have been overconfident on these patients; its probabilities become softer.'
        >>> TemperatureEstimate.from_dict(estimate.to_dict()) == estimate
        True
    """

    temperature: float
    low: float
    high: float
    coverage: float
    leave_one_out: dict[str, float]
    nll_before: float
    nll_after: float
    patients: int
    voxels: int
    at_edge: bool

    def summary(self) -> str:
        """Return the temperature, and how far other patients could move it, as one line."""
        line = f"{self.temperature:.3f}, fitted on {self.patients} patient{'s' * (self.patients > 1)}"
        if self.patients > 1:
            line += f"; 95 % interval {self.low:.3f} to {self.high:.3f}"
            if not math.isnan(self.coverage):
                line += f" (held the true temperature in {100 * self.coverage:.0f} % of simulations)"
            if others := self.leave_one_out.values():
                line += f"; {min(others):.3f} to {max(others):.3f} without one of them"
        return line

    def effect(self, by_prediction: bool = True) -> str:
        """Return what the temperature says of the model and does to its probabilities, as one sentence.

        Args:
            by_prediction: Whether nothing but the prediction chose the voxels of the fit, see `Region.by_prediction`.
                Otherwise the temperature of a calibrated model is not 1, and says nothing of its confidence.
        """
        if self.temperature == 1:
            return "T = 1: the probabilities stay as they are."
        relation, confidence, become = (
            (">", "overconfident", "softer") if self.temperature > 1 else ("<", "underconfident", "sharper")
        )
        if not by_prediction:
            return f"T {relation} 1: the probabilities become {become}."
        was = "was" if self.low > 1 or self.high < 1 else "may have been"  # the latter also where they are NaN
        return f"T {relation} 1: the model {was} {confidence} on these patients; its probabilities become {become}."

    def warnings(self) -> list[str]:
        """Return what a user should know before relying on the temperature, one sentence each; often none."""
        sentences = []
        if self.at_edge:
            sentences.append(
                f"The temperature, {self.temperature:g}, is at the edge of its range, {LOWEST:g} to {HIGHEST:g}: the "
                "best one is beyond it, or there is none; check that the logits and the ground truth belong together."
            )
        elif self.low <= LOWEST or self.high >= HIGHEST:
            sentences.append(
                f"The 95 % interval of the temperature ends at the edge of its range, {LOWEST:g} to {HIGHEST:g}: it "
                "may be wider."
            )
        if self.patients < FEWEST_PATIENTS:
            share = f"{100 * self.coverage:.0f} %, not 95 %"
            coverage = "" if math.isnan(self.coverage) else f" (simulated coverage {share})"
            sentences.append(
                f"The temperature was fitted on {self.patients} patient{'s' * (self.patients > 1)}, fewer than "
                f"{FEWEST_PATIENTS}: its interval is not reliable{coverage}."
            )
        if self.low <= 1 <= self.high:
            sentences.append(
                f"The 95 % interval of the temperature, {self.low:.3f} to {self.high:.3f}, includes 1: scaling may not "
                "be needed."
            )
        return sentences

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as data that JSON can store; NaN becomes None."""
        values = asdict(self)
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TemperatureEstimate:
        """Inverse of `to_dict`.

        Args:
            values: Value of each field by its name.

        Raises:
            ValueError: A field is missing, unknown or of another type.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping) or values.keys() != set(names):
            given = ", ".join(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
            raise ValueError(f"values: expected a dictionary with {', '.join(names)}, got {given}")
        decoded: dict[str, Any] = {name: math.nan if value is None else value for name, value in values.items()}
        kinds = {"patients": int, "voxels": int, "at_edge": bool, "leave_one_out": dict}
        for name, value in decoded.items():
            if type(value) not in (kind := kinds.get(name, float), *((int,) if kind is float else ())):
                raise ValueError(f"{name}: expected a value of type {kind.__name__}, got {value!r}")
        without = decoded["leave_one_out"]
        if not all(type(value) in (float, int) for value in without.values()):
            raise ValueError(f"leave_one_out: expected a number for each patient, got {without!r:.60}")
        temperature = decoded["temperature"]
        if not LOWEST <= temperature <= HIGHEST:  # also where NaN
            raise ValueError(f"temperature: expected a number from {LOWEST:g} to {HIGHEST:g}, got {temperature!r}")
        return cls(**decoded)
