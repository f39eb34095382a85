"""Draw docs/another_scanner.png: what the advised calibrator changed, by the number of labelled
patients.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for a clone that is not installed

from calib_components.errors import writing
from calib_tools.cli import run
from calib_workflows.pages.slices import COLORS
from study.labels.tables import ADVISED, NONE, SETS, change, draws, numbers_of
from study.tables.fill_tables import ROOT

NAMES = ("lge", "bssfp", "vendor_b", "home")
BLUE = f"#{COLORS[3]}"


def draw_dots(axes: Axes, place: float, values: np.ndarray) -> None:
    """Draw a dot for each draw, and a bar at their mean."""
    spread = np.random.default_rng(0).uniform(-0.25, 0.25, len(values))
    axes.plot(place + spread, values, "o", color=BLUE, alpha=0.35, markersize=3, linewidth=0)
    axes.plot([place - 0.35, place + 0.35], [values.mean()] * 2, color="black", linewidth=2)


def draw_labels(out: Path = ROOT / "docs" / "another_scanner.png") -> None:
    """Draw the picture to a PNG file."""
    figure = Figure(figsize=(9.5, 3.6), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2.2, 1])
    place, ticks = 0, []
    for name in NAMES:
        first = place
        for patients in numbers_of(name):
            draw_dots(left, place, change("ensemble", name, patients, ADVISED, "dsc").to_numpy())
            ticks.append((place, str(patients)))
            place += 1
        left.text(
            (first + place - 1) / 2,
            1.01,
            SETS[name].replace(" and ", "\n"),
            ha="center",
            va="bottom",
            transform=left.get_xaxis_transform(),
        )
        place += 1
    left.axhline(0, color="grey", linewidth=0.8)
    left.set_ylabel("change of the DSC")
    numbers = numbers_of("lge")
    before = draws("ensemble", "lge", numbers[0])[NONE]["volume_MYO"].to_numpy()
    draw_dots(right, 0, before)
    for index, patients in enumerate(numbers, 1):
        found = draws("ensemble", "lge", patients)[ADVISED]["volume_MYO"]
        draw_dots(right, index, found.to_numpy())
    right.axhline(1, color="grey", linewidth=0.8)
    right.set_title("LGE, myocardium:\nexpected / true volume", fontsize="medium")
    right.set_xticks(range(len(numbers) + 1), ["none", *map(str, numbers)])
    left.set_xticks(*zip(*ticks, strict=True))
    for axes in (left, right):
        axes.set_xlabel("labelled patients")
        axes.grid(axis="y", color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    with writing(out) as unfinished:
        figure.savefig(unfinished, format="png")


if __name__ == "__main__":
    run("draw_labels", draw_labels)
