"""Draw docs/overview.png, the picture on top of the README.

Left: a slice of a phantom (scripts/make_phantoms.py), segmented with the weights of the ACDC bundle. Right: reliability
diagrams of a network without and with a temperature, from results/acdc/further.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for this folder, and a clone that is not installed

from calib_components.errors import writing
from calib_components.metrics import CalibrationBins
from calib_components.tools.cli import run
from calib_components.tools.report.data import Row, read_compact
from scripts.benchmarks.phantoms import make_phantoms

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles" / "acdc_mri_nacl_segmentation"
RESULTS = ROOT / "results" / "acdc" / "further"
CASE, SLICE = "patient004_frame01", 4  # one that suits a network which was not trained on phantoms
HALF = 38  # pixels from the centre of the heart to the edge of the picture
STRUCTURES = {"right ventricle": "#e69f00", "myocardium": "#56b4e9", "left ventricle": "#cc79a7"}
ROWS = {"before": Row("ce_dice"), "after a temperature": Row("ce_dice", "with")}  # of seed 0
ACCURACY, OVER, UNDER = "tab:blue", "lightcoral", "gold"  # as in calib_components.figures
BIN = 13  # the annotated bin of the reliability diagrams, 0.87 to 0.93
FONT = 10.5  # on a figure 8 inches wide


def draw_overview(out: Path = ROOT / "docs" / "overview.png") -> None:
    """Draw the picture to a PNG file, which can be read at a width of 800 pixels."""
    figure = Figure(figsize=(8, 2.4), dpi=200, facecolor="white")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1, 1])[0]
    panels = left.subplots(1, 2, gridspec_kw={"left": 0.01, "right": 0.98, "bottom": 0.02, "top": 0.89, "wspace": 0.05})
    draw_slice(panels, *segmented_slice())
    panels = right.subplots(1, 2, gridspec_kw={"left": 0.14, "right": 0.97, "bottom": 0.19, "top": 0.89, "wspace": 0.2})
    results = read_compact(RESULTS)
    for axes, (title, row) in zip(panels, ROWS.items(), strict=True):
        draw_reliability(axes, results.pooled_bins(row, "predicted", seed=0), title)
        axes.tick_params(labelleft=axes is panels[0])
    panels[0].set_ylabel("right in %", fontsize=FONT, labelpad=2)
    with writing(out) as unfinished:
        figure.savefig(unfinished, format="png")


def segmented_slice() -> list[NDArray]:
    """Draw a phantom, segment it, and give image, prediction and uncertainty of a slice around the heart."""
    with tempfile.TemporaryDirectory() as folder:
        images, maps = Path(folder, "phantoms"), Path(folder, "maps")
        make_phantoms(images, patients=4)
        case = images / "training" / CASE.partition("_")[0]
        places = {"dataset_dir": str(case), "output_dir": str(maps)}
        config = f"{BUNDLE}/configs/inference.yaml"
        monai.bundle.run(config_file=config, bundle_root=str(BUNDLE), device="cpu", **places)
        files = [case / CASE, maps / f"{CASE}_seg", maps / f"{CASE}_uncertainty", case / f"{CASE}_gt"]
        *volumes, label = [nib.Nifti1Image.from_filename(f"{file}.nii.gz").get_fdata()[..., SLICE] for file in files]
    x, y = np.argwhere(label > 0).mean(0).astype(int)
    return [volume[x - HALF : x + HALF, y - HALF : y + HALF].T for volume in volumes]


def draw_slice(panels: NDArray, image: NDArray, prediction: NDArray, uncertainty: NDArray) -> None:
    for axes, title in zip(panels, ("segmentation", "uncertainty"), strict=True):
        axes.set_title(title, fontsize=FONT)
        axes.set_axis_off()
        axes.set_anchor("N")
    panels[0].imshow(image, cmap="gray", interpolation="bicubic")
    for k, color in enumerate(STRUCTURES.values(), start=1):
        panels[0].contourf(prediction == k, levels=[0.5, 1], colors=[color], alpha=0.35)
        panels[0].contour(prediction == k, levels=[0.5], colors=[color], linewidths=1.6)
    panels[1].imshow(uncertainty, cmap="inferno", vmin=0, vmax=1, interpolation="bicubic")


def draw_reliability(axes: Axes, bins: CalibrationBins, title: str) -> None:
    count, confidence, accuracy = (field[0].numpy() for field in (bins.count, bins.confidence, bins.accuracy))
    shown = np.flatnonzero(count > 1e-4 * count.sum())
    width, low = 1 / len(count), np.minimum(accuracy, confidence)
    gap = np.where(accuracy < confidence, OVER, UNDER)
    bar = partial(axes.bar, shown * width, width=width, align="edge", edgecolor="white", linewidth=0.6)
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


if __name__ == "__main__":
    run("draw_overview", draw_overview)
