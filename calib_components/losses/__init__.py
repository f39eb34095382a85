"""NACL ("Trust Your Neighbours", MICCAI 2023), the calibration losses that the paper compares it
with, and L1-ACE.
"""

from calib_components.losses.base import CalibrationLoss
from calib_components.losses.dice_ce import DiceCELoss
from calib_components.losses.entropy_penalty import EntropyPenaltyLoss
from calib_components.losses.focal import FocalLoss
from calib_components.losses.l1_ace import L1ACELoss
from calib_components.losses.l1_ace_dice_ce import L1ACEDiceCELoss
from calib_components.losses.label_smoothing import LabelSmoothingLoss
from calib_components.losses.mbls import MbLSLoss
from calib_components.losses.nacl import NACLLoss
from calib_components.losses.priors import neighbor_prior
from calib_components.losses.svls import SVLSLoss

__all__ = [
    "LOSSES",
    "CalibrationLoss",
    "DiceCELoss",
    "EntropyPenaltyLoss",
    "FocalLoss",
    "L1ACEDiceCELoss",
    "L1ACELoss",
    "LabelSmoothingLoss",
    "MbLSLoss",
    "NACLLoss",
    "SVLSLoss",
    "neighbor_prior",
]

# Losses to train with, by the name of their overlay in `bundles/common/losses`.
LOSSES: dict[str, type[CalibrationLoss]] = {
    "nacl": NACLLoss,
    "svls": SVLSLoss,
    "mbls": MbLSLoss,
    "entropy_penalty": EntropyPenaltyLoss,
    "label_smoothing": LabelSmoothingLoss,
    "focal": FocalLoss,
    "l1_ace": L1ACEDiceCELoss,
}
