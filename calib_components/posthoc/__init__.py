"""Post-hoc calibration of a trained network: temperature scaling."""

from calib_components.posthoc.estimate import TemperatureEstimate
from calib_components.posthoc.network import (
    EnsembleUNet,
    TemperatureScaled,
    TemperatureUNet,
    find_temperature,
    set_temperature,
)
from calib_components.posthoc.temperature import TemperatureScaling

__all__ = [
    "EnsembleUNet",
    "TemperatureEstimate",
    "TemperatureScaled",
    "TemperatureScaling",
    "TemperatureUNet",
    "find_temperature",
    "set_temperature",
]
