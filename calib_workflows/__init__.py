"""What the configurations of bundles name besides losses, metrics and the network: data, training,
inference, calibration and evaluation.

Needs the extra `bundles`.
"""
