"""Draw docs/regions.png: what true probabilities score on the foreground, and temperatures in three
regions.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for a clone that is not installed

from calib_components.errors import writing
from calib_components.metrics import CalibrationMetric
from calib_components.tools.cli import run

ROOT = Path(__file__).resolve().parents[2]
REGIONS = {"all": "tab:gray", "predicted": "tab:blue", "foreground": "tab:red"}


def draw_regions(out: Path = ROOT / "docs" / "regions.png") -> None:
    """Draw the picture to a PNG file."""
    torch.manual_seed(0)
    logits = 2 * torch.randn(1, 4, 100, 100, 100)
    logits[:, 0] += 3  # two thirds of the voxels become background
    label = torch.distributions.Categorical(logits=logits.movedim(1, -1)).sample()[:, None]

    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    metric = measure(logits, label, 1.0)
    bins, if_true = metric.bins, metric.bins_if_true
    assert if_true is not None  # the foreground has a closed form
    width = 1 / bins.count.shape[1]
    center = (np.arange(bins.count.shape[1]) + 0.5) * width
    # The accuracy of the others is that of a few voxels
    shown = bins.count[0] > 0.001 * bins.count.sum()
    bars = (("confidence", bins.confidence, "lightcoral"), ("accuracy", bins.accuracy, "tab:blue"))
    for name, values, bar_color in bars:
        left.bar(
            center[shown], values[0, shown], width, color=bar_color, edgecolor="white", label=name
        )
    mark = {"marker": "_", "s": 260, "color": "black", "label": "if the probabilities were true"}
    left.scatter(center[shown], if_true.accuracy[0, shown], **mark)
    left.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--")
    left.set(
        xlim=(0.2, 1),
        ylim=(0, 1),
        xlabel="Confidence",
        ylabel="Accuracy",
        title="True probabilities, foreground",
    )
    left.legend(loc="upper left", frameon=False, fontsize="small")

    temperatures = np.geomspace(0.4, 2.5, 17)  # 1 in the middle
    metrics = [measure(logits, label, temperature) for temperature in temperatures]
    for region, color in REGIONS.items():
        of_region = [m if region == "foreground" else m.regions[region] for m in metrics]
        right.plot(temperatures, [m.aggregate() for m in of_region], color=color, label=region)
    right.plot(
        temperatures,
        [m.aggregate_if_true() for m in metrics],
        color=REGIONS["foreground"],
        linestyle=":",
        label="foreground, if true",
    )
    right.axvline(1, color="black", linewidth=1, linestyle="--")
    right.set(
        xscale="log",
        ylim=(0, 0.45),
        xlabel="Temperature: overconfident < 1 < underconfident",
        ylabel="ECE",
    )
    right.set_xticks([0.4, 0.6, 1, 1.6, 2.5], labels=["0.4", "0.6", "1", "1.6", "2.5"])
    right.minorticks_off()
    right.set_title("The same logits, divided by a temperature")
    right.legend(loc="upper left", ncols=2, frameon=False, fontsize="small")
    with writing(out) as unfinished:
        figure.savefig(unfinished, format="png")


def measure(logits: torch.Tensor, label: torch.Tensor, temperature: float) -> CalibrationMetric:
    """Measure all three regions of logits that are divided by a temperature."""
    metric = CalibrationMetric(region="foreground", regions=["all", "predicted"])
    metric((logits / temperature).softmax(1), label)
    return metric


if __name__ == "__main__":
    run("draw_regions", draw_regions)
