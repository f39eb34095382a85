"""Post-hoc calibration of a trained network: temperature scaling."""

from calib_components.posthoc.network import TemperatureScaled, TemperatureUNet, find_temperature, set_temperature
from calib_components.posthoc.temperature import TemperatureEstimate, TemperatureScaling

__all__ = [
    "TemperatureEstimate",
    "TemperatureScaled",
    "TemperatureScaling",
    "TemperatureUNet",
    "find_temperature",
    "set_temperature",
]
