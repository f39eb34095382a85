"""The demo: calibrates two networks on real patients, and shows what a temperature changes."""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from calib_components.errors import writing
from calib_components.metrics import CalibrationBins
from calib_tools.prepare import prepare_data
from calib_tools.report.calibration import judge_regions
from calib_tools.report.data import Results
from calib_tools.report.readers import read_evaluations
from calib_workflows.calibrate import read_estimate
from calib_workflows.data.facts import facts_beside
from calib_workflows.fit import unscaled
from calib_workflows.folders import OutputFolder
from calib_workflows.weights import with_calibrator, write_weights

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "hippocampus_mri_nacl_segmentation"
DATA = ROOT / "demo" / "data"
NETWORKS = {"CE + Dice": ROOT / "demo" / "ce_dice", "NACL": BUNDLE / "models"}
TRAINED = "CE + Dice, trained here"
EPOCHS = 20  # of that
BEFORE, AFTER = "CE + Dice", "CE + Dice with T"  # in the picture
COLORS = ["#e69f00", "#56b4e9"]  # of the structures
ACCURACY, OVER, UNDER = "tab:blue", "lightcoral", "gold"  # as in calib_workflows.figures
BIN = 13  # the annotated bin of the reliability diagrams, 0.87 to 0.93
FONT = 10.5  # on a figure 8 inches wide
EXPLAINED = """
CE + Dice and NACL: the losses that the networks were trained with; NACL is one against
overconfidence. T: a temperature, one number that divides a network's outputs; above 1, it lowers
the confidence. It was fitted on {fitted} other patients, and leaves the segmentation as it
is.{trained}

Dice: overlap with the expert's segmentation, at best 1. Sure: mean confidence where the network
segments. Right: how often it is right there. Too sure by: the difference in percentage points and
its 95 % interval; 0 if the network is calibrated, below 0 if it is not sure enough. NLL: error of
the probabilities there; lower is better. With {tested} patients and one training of each loss,
these numbers do not tell which loss is better.

Picture: {out}/overview.png
Next, after `. .venv/bin/activate`:
  all measures on one page         python scripts/report.py {out}/evaluations/* --out {out}/report
  predictions of your own network  docs/own_predictions.md
  images and labels of your own    docs/own_data.md"""
TRAINED_HERE = (
    " The network trained here saw {fitted} patients for {epochs} epochs, far less than the others."
)


def demo(out: Path = Path("demo_output"), *, train: bool = False, overwrite: bool = False) -> None:
    """See `scripts.helpers.commands.demo`."""
    OutputFolder(out, {"command": "demo"}, overwrite=overwrite).claim(["log.txt", "overview.png"])
    terminal, numbers, steps = sys.stdout, itertools.count(1), 3 + 2 * len(NETWORKS) + train

    def show(title: str) -> None:
        print(f"{next(numbers)}/{steps} {title}", file=terminal, flush=True)

    # MONAI prints what it does
    with (out / "log.txt").open("w", buffering=1) as log, contextlib.redirect_stdout(log):
        logging.basicConfig(stream=log, level=logging.INFO)
        for module in ("scripts", "workflows"):  # which print to the terminal since their import
            logging.getLogger(f"monai.bundle.{module}").setLevel(logging.ERROR)
        logging.captureWarnings(True)
        results = measure(out, train, show)
        show("Draw the picture")
        draw(results, out)
    print(f"\n{tabulate(results, out / 'weights')}")
    fitted, tested = (
        len([*(DATA / split / "imagesTr").iterdir()]) for split in ("validation", "testing")
    )
    trained = TRAINED_HERE.format(fitted=fitted, epochs=EPOCHS) if train else ""
    print(EXPLAINED.format(out=out, fitted=fitted, tested=tested, trained=trained))


def measure(out: Path, train: bool, show: Callable[[str], None]) -> Results:
    """Do all but the picture; `show` tells what comes next."""
    data = {split: out / "data" / split for split in ("training", "validation", "testing")}

    def calibrate(name: str, trained: Path) -> None:
        run(
            "train",
            "calibrate",
            dataset_dir=data["validation"],
            calibrator="temperature",
            ckpt_dir=trained,
            calibrated_path=out / "weights" / name / "model.pt",
            output_dir=out / "weights" / name,
        )

    def evaluate(name: str) -> Path:
        places = {"dataset_dir": data["testing"], "ckpt_dir": out / "weights" / name}
        run("train", "evaluate", output_dir=out / "evaluations" / name, **places)
        return out / "evaluations" / name

    show(f"Prepare real patients. What the steps print is in {out / 'log.txt'}")
    for split in (*["training"] * train, "validation", "testing"):
        source = DATA / ("testing" if split == "testing" else "validation")
        prepare_data(
            "hippocampus", source, data[split], fractions=[float(name == split) for name in data]
        )
    evaluations = []
    for name, trained in NETWORKS.items():
        show(f"Evaluate {name} as trained")
        write_as_trained(trained / "model.pt", out / "weights" / name / "model.pt")
        evaluations.append(evaluate(name))
        show(f"Fit a temperature to {name}, and evaluate it again")
        calibrate(f"{name} with T", trained)
        evaluations.append(evaluate(f"{name} with T"))
    if train:
        show(f"Train CE + Dice for {EPOCHS} epochs on {data['training']}, and evaluate it")
        places = {"dataset_dir": data["training"], "ckpt_dir": out / "weights" / TRAINED}
        run(
            "train",
            "losses/ce_dice",
            output_dir=out / "training",
            max_epochs=EPOCHS,
            **places,
        )
        evaluations.append(evaluate(TRAINED))
    show(f"Segment the test patients with {AFTER}: {out / 'maps'}")
    places = {"dataset_dir": DATA / "testing" / "imagesTr", "ckpt_dir": out / "weights" / AFTER}
    run("inference", output_dir=out / "maps", **places)
    return read_evaluations(evaluations)


def write_as_trained(weights: Path, file: Path) -> None:
    """Write weights without a temperature."""
    content = with_calibrator(weights, unscaled())
    write_weights(file, content, facts_beside(weights), "out")


def run(*configs: str, **options: Any) -> None:
    """Run the bundle, as `python -m monai.bundle run` does; what it logs goes to the file of the
    log.
    """
    files = [str(BUNDLE / "configs" / f"{name}.yaml") for name in configs]
    options |= {
        "config_file": files,
        "bundle_root": BUNDLE,
        "logging_file": False,
        "num_workers": 0,
        "overwrite": True,  # results of an earlier demo
    }
    monai.bundle.run(
        **{
            name: str(value) if isinstance(value, Path) else value
            for name, value in options.items()
        }
    )


def tabulate(results: Results, weights: Path) -> str:
    """Return the table: a line for each network, of means over patients.

    Args:
        results: Their evaluations.
        weights: Folder of their weights.
    """
    lines = {}
    for name, cases in results.cases.items():
        found = judge_regions(results, name)["predicted"]
        low, high = (f"{100 * end:+.1f}" for end in (found.gap.low, found.gap.high))
        is_calibrated = results.evaluations[name].summary["calibration"] is not None
        value = f" = {read_estimate(weights / name).temperature:.2f}" if is_calibrated else ""
        lines[f"{name}{value}"] = {
            "Dice": f"{cases['dsc'].mean():.3f}",
            "sure": f"{100 * found.confidence:.1f} %",
            "right": f"{100 * found.accuracy:.1f} %",
            "too sure by": f"{100 * found.gap.mean:+.1f} ({low} to {high})",
            "NLL": f"{cases['nll_predicted'].mean():.3f}",
        }
    return pd.DataFrame(lines).T.to_string()


def draw(results: Results, out: Path) -> None:
    """Draw the case with the median Dice, segmented with a temperature, and reliability without and
    with it.
    """
    figure = Figure(figsize=(8, 2.4), dpi=200, facecolor="white")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1, 1])[0]
    panels = left.subplots(
        1, 2, gridspec_kw={"left": 0.01, "right": 0.98, "bottom": 0.02, "top": 0.89, "wspace": 0.05}
    )
    by_dice = results.cases[AFTER].sort_values("dsc").index
    draw_case(panels, by_dice[len(by_dice) // 2], out / "maps")
    panels = right.subplots(
        1, 2, gridspec_kw={"left": 0.14, "right": 0.96, "bottom": 0.19, "top": 0.89, "wspace": 0.2}
    )
    for axes, name, title in zip(
        panels, (BEFORE, AFTER), ("before", "after a temperature"), strict=True
    ):
        draw_reliability(axes, results.bins[name]["predicted"].pooled(), title)
        axes.tick_params(labelleft=axes is panels[0])
    about = (
        "colours: front and back hippocampus\ndotted: the expert's borders\nred bars: too sure,"
        " yellow: not sure enough"
    )
    left.text(0.01, 0.24, about, fontsize=FONT, va="top")
    panels[0].set_ylabel("right in %", fontsize=FONT, labelpad=2)
    with writing(out / "overview.png") as unfinished:
        figure.savefig(unfinished, format="png")


def draw_case(panels: NDArray, case: str, maps: Path) -> None:
    """Draw segmentation and uncertainty of the sagittal slice with the most of both structures."""
    data = DATA / "testing"
    files = [
        data / "imagesTr" / case,
        data / "labelsTr" / case,
        maps / f"{case}_seg",
        maps / f"{case}_uncertainty",
    ]
    volumes = [nib.as_closest_canonical(nib.load(f"{file}.nii.gz")).get_fdata() for file in files]
    x = np.argmax((volumes[1] > 0).sum((1, 2)))
    image, label, prediction, uncertainty = (volume[x].T for volume in volumes)
    for axes, title in zip(panels, ("segmentation", "uncertainty"), strict=True):
        axes.set_title(title, fontsize=FONT)
        axes.set_axis_off()
        axes.set_anchor("N")
    panels[0].imshow(image, cmap="gray", origin="lower", interpolation="bicubic")
    panels[1].imshow(
        uncertainty, cmap="inferno", vmin=0, vmax=1, origin="lower", interpolation="bicubic"
    )
    for k, color in enumerate(COLORS, start=1):
        panels[0].contourf(prediction == k, levels=[0.5, 1], colors=[color], alpha=0.35)
        panels[0].contour(prediction == k, levels=[0.5], colors=[color], linewidths=1.6)
        panels[0].contour(
            label == k, levels=[0.5], colors=["white"], linewidths=1, linestyles="dotted"
        )


def draw_reliability(axes: Axes, bins: CalibrationBins, title: str) -> None:
    count, confidence, accuracy = (
        field[0].numpy() for field in (bins.count, bins.confidence, bins.accuracy)
    )
    shown = np.flatnonzero(count > 1e-4 * count.sum())
    width, low = 1 / len(count), np.minimum(accuracy, confidence)
    gap = np.where(accuracy < confidence, OVER, UNDER)
    bar = partial(
        axes.bar, shown * width, width=width, align="edge", edgecolor="white", linewidth=0.6
    )
    bar(low[shown], color=ACCURACY)
    bar(abs(accuracy - confidence)[shown], bottom=low[shown], color=gap[shown])
    axes.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", anchor="N")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([0, 0.5, 1], ["0", "50", "100"])
    axes.set_title(title, fontsize=FONT)
    axes.set_xlabel("confidence in %", fontsize=FONT, labelpad=1)
    axes.tick_params(labelsize=FONT - 2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.annotate(
        f"{100 * confidence[BIN]:.0f} % sure,\n{100 * accuracy[BIN]:.0f} % right",
        ((BIN + 0.5) * width, accuracy[BIN]),
        (0.05, 0.8),
        fontsize=FONT,
        arrowprops={"arrowstyle": "-", "color": "0.3", "linewidth": 0.8},
    )
