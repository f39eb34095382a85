"""NACL ("Trust Your Neighbours", MICCAI 2023), the calibration losses that the paper compares it with, and L1-ACE."""

from calib_components.losses.entropy_penalty import EntropyPenaltyLoss, entropy_penalty_loss
from calib_components.losses.focal import FocalLoss, focal_loss
from calib_components.losses.l1_ace import L1ACELoss, l1_ace_loss
from calib_components.losses.l1_ace_dice_ce import L1ACEDiceCELoss, l1_ace_dice_ce_loss
from calib_components.losses.label_smoothing import LabelSmoothingLoss, label_smoothing_loss
from calib_components.losses.mbls import MbLSLoss, mbls_loss
from calib_components.losses.nacl import NACLLoss, nacl_loss
from calib_components.losses.priors import neighbor_prior
from calib_components.losses.svls import SVLSLoss, svls_loss

__all__ = [
    "EntropyPenaltyLoss",
    "FocalLoss",
    "L1ACEDiceCELoss",
    "L1ACELoss",
    "LabelSmoothingLoss",
    "MbLSLoss",
    "NACLLoss",
    "SVLSLoss",
    "entropy_penalty_loss",
    "focal_loss",
    "l1_ace_dice_ce_loss",
    "l1_ace_loss",
    "label_smoothing_loss",
    "mbls_loss",
    "nacl_loss",
    "neighbor_prior",
    "svls_loss",
]
