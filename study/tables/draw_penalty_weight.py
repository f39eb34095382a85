"""Draw docs/penalty_weight.png: the ceiling of NACL's confidence, and what the weight did on each
test set.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for a clone that is not installed

from calib_components.errors import writing
from calib_tools.cli import run
from study.compare.compact import read_compact
from study.compare.data import Row

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "study/results/acdc/variants"
NETWORKS = {0.01: "nacl_0.01", 0.03: "nacl_0.03", 0.1: "nacl", 0.3: "nacl_0.3"}
PLACES = {"ACDC": "", "bSSFP, another hospital": "bssfp", "LGE, another sequence": "lge"}


def ceiling(weight: float, num_classes: int) -> float:
    """Return the highest confidence that NACL leads to, see `NACLLoss`."""
    if weight / num_classes < (num_classes - 1) / (math.e + num_classes - 1):
        return 1 - weight / num_classes
    return math.e / (math.e + num_classes - 1)


def draw_penalty_weight(out: Path = ROOT / "docs" / "penalty_weight.png") -> None:
    """Draw the picture to a PNG file."""
    figure = Figure(figsize=(11, 3.2), dpi=150, layout="constrained")
    left, *others = figure.subplots(1, 4)
    weights = np.linspace(0, 1, 201)
    for num_classes in (2, 4, 8):
        left.plot(
            weights,
            [ceiling(weight, num_classes) for weight in weights],
            label=f"N = {num_classes}",
        )
    left.axvline(0.1, color="black", linewidth=1, linestyle="--")
    left.set(
        xlabel="penalty_weight",
        ylabel="Highest confidence",
        ylim=(0.7, 1),
        title="Ceiling, N classes",
    )
    left.legend(frameon=False)
    found = read_compact(RESULTS)
    for axes, (place, test_set) in zip(others, PLACES.items(), strict=True):
        bins = [
            found.pooled_bins(Row(name, test_set=test_set), "predicted")
            for name in NETWORKS.values()
        ]
        for sums, label in (("confidence_sum", "confidence"), ("num_correct", "accuracy")):
            means = [
                (getattr(of_weight, sums).sum() / of_weight.count.sum()).item()
                for of_weight in bins
            ]
            axes.plot(list(NETWORKS), means, marker="o", label=label)
        axes.set(xscale="log", ylim=(0.65, 1), xlabel="penalty_weight", title=place)
        axes.set_xticks(list(NETWORKS), [f"{weight:g}" for weight in NETWORKS])
        axes.minorticks_off()
    others[0].set_ylabel("Where a structure is predicted")
    others[0].legend(frameon=False)
    with writing(out) as unfinished:
        figure.savefig(unfinished, format="png")


if __name__ == "__main__":
    run("draw_penalty_weight", draw_penalty_weight)
