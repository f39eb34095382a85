"""Post-hoc calibration of a trained network: temperature scaling."""

from calib_components.posthoc.network import TemperatureScaled, TemperatureUNet, find_temperature, set_temperature

__all__ = ["TemperatureScaled", "TemperatureUNet", "find_temperature", "set_temperature"]
