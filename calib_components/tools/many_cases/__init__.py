"""Many cases: `infer` and `evaluate` run a bundle case by case, here or as a Slurm array."""

from calib_components.tools.many_cases.commands import evaluate, infer

__all__ = ["evaluate", "infer"]
