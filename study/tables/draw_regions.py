"""Draw docs/regions.png: the ECE of true probabilities over a temperature, in three regions."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for a clone that is not installed

from calib_components.errors import writing
from calib_components.metrics import CalibrationMetric
from calib_tools.cli import run

ROOT = Path(__file__).resolve().parents[2]
COLORS = {"all": "tab:gray", "predicted": "tab:blue", "foreground": "tab:red"}  # of regions


def draw_regions(out: Path = ROOT / "docs" / "regions.png") -> None:
    """Draw the picture to a PNG file."""
    torch.manual_seed(0)
    logits = 2 * torch.randn(1, 4, 100, 100, 100)
    logits[:, 0] += 3  # two thirds of the voxels become background
    label = torch.distributions.Categorical(logits=logits.movedim(1, -1)).sample()[:, None]
    temperatures = np.geomspace(0.4, 2.5, 17)  # 1 in the middle
    errors: dict[str, list[float]] = {name: [] for name in (*COLORS, "foreground, if true")}
    for temperature in temperatures:
        metric = CalibrationMetric(region="foreground", regions=["all", "predicted"])
        metric((logits / temperature).softmax(1), label)
        for name in ("all", "predicted"):
            errors[name].append(metric.regions[name].aggregate().item())
        errors["foreground"].append(metric.aggregate().item())
        errors["foreground, if true"].append(metric.aggregate_if_true().item())

    figure = Figure(figsize=(5.5, 3.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for name, values in errors.items():
        region, _, if_true = name.partition(", ")
        style = ":" if if_true else "-"
        axes.plot(temperatures, values, color=COLORS[region], linestyle=style, label=name)
    axes.axvline(1, color="black", linewidth=1, linestyle="--")
    axes.set(
        xscale="log",
        ylim=(0, 0.45),
        xlabel="Temperature: overconfident < 1 < underconfident",
        ylabel="ECE",
    )
    axes.set_xticks([0.4, 0.6, 1, 1.6, 2.5], labels=["0.4", "0.6", "1", "1.6", "2.5"])
    axes.minorticks_off()
    axes.legend(loc="upper left", ncols=2, frameon=False, fontsize="small")
    with writing(out) as unfinished:
        figure.savefig(unfinished, format="png")


if __name__ == "__main__":
    run("draw_regions", draw_regions)
