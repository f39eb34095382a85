"""Default options, shared by the function and the class of each loss: Table 1 of "Trust Your Neighbours"."""

PRIOR = "mean"
KERNEL_SIZE = 3
SIGMA = 2.0
PADDING = "replicate"  # of this package: the authors' code pads with background (see `neighbor_prior`)
PENALTY = "l1"
CONSTRAINT = "logits"
PENALTY_WEIGHT = 0.1
MARGIN = 5.0
ALPHA = 0.1
GAMMA = 3.0
