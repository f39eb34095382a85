r"""Join the weights of several trainings to those of an ensemble, which averages the probabilities
of its members.

    python scripts/join_weights.py seed0/model.pt seed1/model.pt --out ensemble/model.pt

The bundle runs it as one network, to evaluate, calibrate or infer, with

    --ckpt_dir ensemble --network_def::_target_ calib_components.posthoc.EnsembleUNet \
      --network_def::members 2
"""

from __future__ import annotations

from calib_components.tools import cli

if __name__ == "__main__":
    cli.run("join_weights", "calib_components.handlers.weights:join_weights")
