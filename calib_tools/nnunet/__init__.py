"""nnU-Net: trainers with the losses of this package, and a temperature in its checkpoints."""
