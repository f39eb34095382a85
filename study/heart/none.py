"""No calibration as a calibrator, for weights that no temperature helps: their reference is that of
the probabilities as they are.

    --calibrator::_target_ study.heart.none.NoTemperature
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from calib_components.posthoc import TemperatureEstimate, TemperatureScaling
from calib_components.posthoc.base import Array


class NoTemperature(TemperatureScaling):
    """A temperature of 1, whatever the cases are."""

    def solve(self, patients: Mapping[str, Array]) -> TemperatureEstimate:
        estimate = super().solve(patients)
        self.set_state({"temperature": 1.0})
        return replace(estimate, temperature=1.0, nll_after=estimate.nll_before, at_edge=False)

    def solve_without(self, patients: Mapping[str, Array]) -> Iterator[dict[str, float]]:
        yield from ({"temperature": 1.0} for _ in patients)
