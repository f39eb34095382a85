"""Tables of the heart's losses, from the rows of `study.heart.measure`.

    python -m study.heart.tables

prints them.
"""

from __future__ import annotations

import functools
from itertools import product

import pandas as pd

from calib_components.tools.report.statistics import Estimate
from study.tables.networks import Networks, corrected, markdown, p_text, text
from study.tables.shipped import HEART, read_heart

LOSSES = {"nacl": "NACL", "cross_entropy": "CE", "ce_dice": "CE + Dice"}
PAIRS = (("nacl", "cross_entropy"), ("nacl", "ce_dice"), ("cross_entropy", "ce_dice"))
CALIBRATORS = ("", "T", "T changed")
SCORES = {"nll_all": "NLL, all voxels", "nll_near": "NLL, near", "dsc": "DSC"}


@functools.cache
def read_rows() -> pd.DataFrame:
    """Return the rows of single networks, with their loss and seed, and the mean DSC of a scan."""
    rows = read_heart()
    names = rows["network"].str.extract("^(?P<loss>.+)_seed(?P<seed>[0-9]+)$")
    rows = rows.join(names).dropna(subset="seed").astype({"seed": int})
    return rows.assign(dsc=rows.filter(regex="^dsc_").mean(axis=1))


@functools.cache
def networks_on(name: str) -> Networks:
    """Return the networks on a test set, of a loss and a temperature."""
    rows = read_rows()
    return Networks(rows[rows["set"] == name].set_index(["loss", "calibrator"]))


def means_table(measure: str) -> str:
    """Return the means of each loss and temperature on each set."""
    rows = {}
    for loss, calibrator in product(LOSSES, CALIBRATORS):
        title = f"{LOSSES[loss]}{f' + {calibrator}' if calibrator else ''}"
        found = (networks_on(name).mean((loss, calibrator), measure) for name in HEART)
        rows[title] = [text(each, digits=3) for each in found]
    return markdown(rows, [*HEART.values()])


def differences(measure: str, calibrator: str) -> dict[str, Estimate]:
    """Return the differences of the losses on all sets, corrected for their family."""
    found = {}
    for (one, other), name in product(PAIRS, HEART):
        pair = ((one, calibrator), (other, calibrator))
        title = f"{LOSSES[one]} - {LOSSES[other]}, {HEART[name]}"
        found[title] = networks_on(name).difference(pair, measure)
    return corrected(found)


def differences_table(measure: str, calibrator: str) -> str:
    """Return the differences with their p-values."""
    rows = {
        title: [text(found, "+", 3), p_text(found.p_value)]
        for title, found in differences(measure, calibrator).items()
    }
    return markdown(rows, [SCORES[measure], "p, Holm"])


def shipping_table() -> str:
    """Return NLL and DSC of each network on the even validation patients, who choose what is
    shipped.
    """
    networks = networks_on("validation")
    rows = {}
    for loss, calibrator in product(LOSSES, CALIBRATORS):
        setting, title = (loss, calibrator), f"{LOSSES[loss]} {calibrator}".strip()
        seeds = sorted(networks.rows.loc[setting]["seed"].unique())
        scores = [networks.values(setting, name).mean(1) for name in ("nll_all", "dsc")]
        for seed, nll, dsc in zip(seeds, *scores, strict=True):
            rows[f"{title}, seed {seed}"] = [f"{nll:.4f}", f"{dsc:.3f}"]
    return markdown(rows, ["NLL, all voxels", "DSC"])


if __name__ == "__main__":
    print(shipping_table())
    print("\n\n".join(map(means_table, SCORES)))
    for measure, calibrator in product(("nll_all", "nll_near"), CALIBRATORS):
        print(f"\n{calibrator or 'as trained'}\n\n{differences_table(measure, calibrator)}")
