"""Benchmarks: tables of ratios, each measured interleaved in one run."""

from calib_components.tools.benchmarks.evaluation import evaluation
from calib_components.tools.benchmarks.inference import inference
from calib_components.tools.benchmarks.losses import losses
from calib_components.tools.benchmarks.metrics import metrics
from calib_components.tools.benchmarks.posthoc import posthoc
from calib_components.tools.benchmarks.training import train

__all__ = ["evaluation", "inference", "losses", "metrics", "posthoc", "train"]
