"""No calibration as a calibrator, for weights that no temperature helps: their reference is that of
the probabilities as they are.

    --calibrator::_target_ study.heart.none.NoTemperature
"""

from __future__ import annotations

from collections.abc import Sequence

from calib_components.posthoc import TemperatureEstimate, TemperatureScaling
from calib_components.posthoc.base import Array


class NoTemperature(TemperatureScaling):
    """Reports the temperature that would be fitted, and applies 1."""

    def solve(self, names: Sequence[str], rows: Array) -> TemperatureEstimate:
        estimate = super().solve(names, rows)
        self.set_state({"temperature": 1.0})
        return estimate

    def states_without(self, names: Sequence[str], rows: Array) -> list[dict[str, float]]:
        return [{"temperature": 1.0} for _ in names]
