"""Benchmarks: tables of ratios, each measured interleaved in one run."""

from scripts.benchmarks.evaluation import evaluation
from scripts.benchmarks.inference import inference
from scripts.benchmarks.losses import losses
from scripts.benchmarks.metrics import metrics
from scripts.benchmarks.posthoc import posthoc
from scripts.benchmarks.training import train

__all__ = ["evaluation", "inference", "losses", "metrics", "posthoc", "train"]
