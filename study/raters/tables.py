"""Tables of the page "Whom do we believe?", from the results of `study.raters.measure`."""

from __future__ import annotations

import functools
from itertools import product
from pathlib import Path

import pandas as pd

from calib_components.metrics.intervals import Estimate
from study.raters.train import LOSSES, TARGETS
from study.tables.networks import Networks, corrected, markdown, p_text, text

RESULTS = Path(__file__).resolve().parents[1] / "results" / "raters"
PRIMARY = "nll_all"
MEASURES = {
    PRIMARY: "NLL, all voxels",
    "nll_near": "NLL, near",
    "ece_predicted": "ECE, predicted",
    "gap": "confidence - accuracy, predicted",
    "dsc": "DSC",
}
NAMES = {"cross_entropy": "CE", "nacl": "NACL", "svls": "SVLS"}


def read_rows(name: str) -> pd.DataFrame:
    """Return a table of results, with the gap of the predicted voxels."""
    rows = pd.read_csv(RESULTS / name)
    rows["gap"] = (rows["confidence"] - rows["correct"]) / rows["predicted_voxels"]
    rows["with_t"] = rows["temperature"] != 1
    return rows


@functools.cache
def brains() -> Networks:
    """Return values over all raters of the newborn brains, of a target, a loss, and without or with
    T.
    """
    rows = read_rows("brains.csv.gz")
    rows = rows[rows["rater"] == "all"].rename(columns={"scan": "case"})
    rows["patient"], rows["above"] = rows["case"], rows["dsc"] - rows["raters_dsc"]
    return Networks(rows.set_index(["target", "loss", "with_t"]))


def means_table() -> str:
    """Return the means of each setting."""
    rows = {}
    for target, loss, with_t in product(TARGETS, LOSSES, (False, True)):
        title = f"{NAMES[loss]} on the {target}{' + T' if with_t else ''}"
        found = (brains().mean((target, loss, with_t), name) for name in MEASURES)
        rows[title] = [*map(text, found)]
    return markdown(rows, [*MEASURES.values()])


def differences(measure: str, with_t: bool = False) -> dict[str, Estimate]:
    """Return the differences of the protocol's family, corrected for it."""
    pairs = {
        f"{NAMES[loss]} - CE, on the {target}": ((target, loss), (target, "cross_entropy"))
        for target, loss in product(TARGETS, ("nacl", "svls"))
    }
    for loss in LOSSES:
        pairs[f"mean - majority, {NAMES[loss]}"] = (("mean", loss), ("majority", loss))
    return corrected(
        {
            title: brains().difference(((*one, with_t), (*other, with_t)), measure)
            for title, (one, other) in pairs.items()
        }
    )


def differences_table() -> str:
    """Return the differences; the p-values are of the primary measure."""
    primary = differences(PRIMARY)
    shown = [primary, differences(PRIMARY, True)]
    shown += [differences("nll_near"), differences("dsc")]
    rows = {}
    for title, found in primary.items():
        first, *others = (text(each[title], "+") for each in shown)
        rows[title] = [first, p_text(found.p_value), *others]
    titles = ("p, Holm", f"{MEASURES[PRIMARY]}, with T", MEASURES["nll_near"], "DSC")
    return markdown(rows, [MEASURES[PRIMARY], *titles])


def within_table() -> str:
    """Return the DSC with a rater minus that of raters with each other."""
    rows = {
        f"{NAMES[loss]} on the {target}": [text(brains().mean((target, loss, False), "above"), "+")]
        for target, loss in product(TARGETS, LOSSES)
    }
    return markdown(rows, ["DSC - DSC of raters"])


def retina_table() -> str:
    """Return the means of the strangers' networks over images, against each rater and all."""
    rows = read_rows("retina.csv")
    measures = ["dsc", "nll_all", "ece_all", "ece_predicted", "gap"]
    means = rows.groupby(["set", "network", "with_t", "rater"], sort=False)[measures].mean()
    names = {"drive": "DRIVE", "chase": "CHASE", "wnet": "W-Net", "m2unet": "M2U-Net"}
    table = {
        f"{names[data]}, {names[network]}{' + T' if with_t else ''}, {rater}": [
            f"{value:.3f}" for value in values
        ]
        for (data, network, with_t, rater), values in zip(
            means.index, means.to_numpy(), strict=True
        )
    }
    titles = {**MEASURES, "ece_all": "ECE, all voxels"}
    return markdown(table, [titles[name] for name in measures])
