"""Calibration losses and metrics for medical image segmentation in PyTorch and MONAI."""

__version__ = "0.4.0"
