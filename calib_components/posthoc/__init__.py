"""Post-hoc calibration of a trained network."""

from calib_components.posthoc.base import KINDS, RETIRED, Calibrator, Estimate
from calib_components.posthoc.comparison import CANDIDATES, Advice, LeftOut, advise
from calib_components.posthoc.network import (
    Ensemble,
    TemperatureScaled,
    TemperatureUNet,
    describe_calibration,
    find_calibrator,
    find_reference,
    find_tests,
    members_of,
    set_calibrator,
)
from calib_components.posthoc.temperature import TemperatureEstimate, TemperatureScaling
from calib_components.posthoc.vector import BiasEstimate, ClassBias, VectorEstimate, VectorScaling

__all__ = [
    "CANDIDATES",
    "KINDS",
    "RETIRED",
    "Advice",
    "BiasEstimate",
    "Calibrator",
    "ClassBias",
    "Ensemble",
    "Estimate",
    "LeftOut",
    "TemperatureEstimate",
    "TemperatureScaled",
    "TemperatureScaling",
    "TemperatureUNet",
    "VectorEstimate",
    "VectorScaling",
    "advise",
    "describe_calibration",
    "find_calibrator",
    "find_reference",
    "find_tests",
    "members_of",
    "set_calibrator",
]
