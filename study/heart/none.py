"""No calibration as a calibrator, for weights that no temperature helps: their reference is that of
the probabilities as they are.

    --calibrator::_target_ study.heart.none.NoTemperature
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from calib_components.posthoc import TemperatureEstimate, TemperatureScaling
from calib_components.posthoc.base import Array


class NoTemperature(TemperatureScaling):
    """A temperature of 1, whatever the cases are."""

    def solve(self, names: Sequence[str], rows: Array) -> TemperatureEstimate:
        estimate = super().solve(names, rows)
        self.set_state({"temperature": 1.0})
        return replace(estimate, temperature=1.0, nll_after=estimate.nll_before, at_edge=False)

    def states_without(self, names: Sequence[str], rows: Array) -> list[dict[str, float]]:
        return [{"temperature": 1.0} for _ in names]
