"""Default options, shared by the function and the class of each loss.

They are those of Table 1 of "Trust Your Neighbours" and, for L1-ACE, those of its authors' experiments.
"""

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
NUM_BINS = 20
IGNORE_EMPTY_CLASSES = True
ACE_WEIGHT = 1.0
