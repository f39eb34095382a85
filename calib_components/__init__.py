"""Calibration losses and metrics for medical image segmentation in PyTorch and MONAI."""

__version__ = "0.5.0"
MOVED = {"bundle", "data", "figures", "handlers", "inference", "tools"}  # in version 0.5


def __getattr__(name: str) -> object:
    """End the run of a bundle of version 0.4, which names modules that are elsewhere now."""
    if name in MOVED:
        raise SystemExit(
            f"calib_components.{name} of version 0.4 is in calib_workflows or calib_tools now. Take"
            " the bundle of this version, or install calib-components<0.5 for the earlier one."
        )
    raise AttributeError(f"module calib_components has no attribute {name!r}")
