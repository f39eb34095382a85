from calib_components.losses.nacl import NACLLoss
__all__ = ["NACLLoss"]
