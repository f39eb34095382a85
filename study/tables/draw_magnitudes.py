"""Draw study/pages/magnitudes.png: the mean magnitude of the logits in the abdomen, as the paper's
Fig. 2.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for a clone that is not installed

from calib_components.errors import writing
from calib_tools.cli import run
from calib_workflows.pages.slices import COLORS
from study.tables.fill_tables import RESULTS, ROOT, TABLE1, label_of, of_common_folds

BLUE = f"#{COLORS[3]}"


def magnitudes() -> pd.DataFrame:
    """Return the mean magnitude over patients of the logit of the true class, `own`, and of the
    other classes, `others`, by loss and true class.
    """
    table = of_common_folds(pd.read_csv(RESULTS / "abdomen" / "authors" / "magnitudes.csv"))
    classes = [*table["true_class"].unique()]
    means = table[table["voxels"] > 0].groupby(["method", "true_class"], sort=False)[classes].mean()
    own = pd.Series({(loss, name): means.loc[(loss, name), name] for loss, name in means.index})
    return pd.DataFrame({"own": own, "others": (means.sum(axis=1) - own) / (len(classes) - 1)})


def draw_panel(axes: Axes, values: pd.DataFrame, name: str) -> None:
    """Draw both magnitudes of each loss where a class is true; that of the others is hollow."""
    for row, loss in enumerate(TABLE1):
        own, others = values.loc[(loss, name)]
        axes.plot([others, own], [row, row], color=BLUE, linewidth=1, alpha=0.5)
        axes.plot(own, row, "o", color=BLUE, markersize=6)
        axes.plot(others, row, "o", color=BLUE, markersize=6, markerfacecolor="white")
    axes.set_title(name, fontsize="medium")
    axes.set_yticks(range(len(TABLE1)), map(label_of, TABLE1))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def draw_magnitudes(out: Path = ROOT / "study" / "pages" / "magnitudes.png") -> None:
    """Draw the picture to a PNG file."""
    figure = Figure(figsize=(9.5, 2.8), dpi=150, layout="constrained")
    values = magnitudes()
    names = [*values.index.unique(1)]
    panels = figure.subplots(1, len(names), sharex=True, sharey=True)
    for axes, name in zip(panels, names, strict=True):
        draw_panel(axes, values, name)
    panels[0].invert_yaxis()
    figure.supxlabel("mean magnitude of a logit; filled: of the true class, hollow: of the others")
    with writing(out) as unfinished:
        figure.savefig(unfinished, format="png")


if __name__ == "__main__":
    run("draw_magnitudes", draw_magnitudes)
