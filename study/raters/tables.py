"""Tables of the page "Whom do we believe?", from the results of `study.raters.measure`.

    python -m study.raters.tables

prints them.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from calib_components.tools.report.statistics import Estimate, holm
from study.compare.statistics import mean_with_interval, paired_difference
from study.raters.train import LOSSES, TARGETS
from study.tables.shipped import markdown

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
Setting = tuple[str, str, bool]  # target, loss, and whether with T


def read_rows(name: str) -> pd.DataFrame:
    """Return a table of results, with the gap of the predicted voxels."""
    rows = pd.read_csv(RESULTS / name)
    rows["gap"] = (rows["confidence"] - rows["correct"]) / rows["predicted_voxels"]
    rows["with_t"] = rows["temperature"] != 1
    return rows


class Brains:
    """Values over all raters of the newborn brains, `(seeds, scans)`."""

    def __init__(self) -> None:
        rows = read_rows("brains.csv.gz")
        self.raters_dsc = rows[rows["rater"] == "all"].groupby("scan")["raters_dsc"].first()
        self.rows = rows[rows["rater"] == "all"].set_index(["target", "loss", "with_t"])
        self.scans = sorted(self.rows["scan"].unique())

    def values(self, setting: Setting, measure: str) -> np.ndarray:
        chosen = self.rows.loc[setting].reset_index()
        return chosen.pivot(index="seed", columns="scan", values=measure)[self.scans].to_numpy()

    def mean(self, setting: Setting, measure: str) -> Estimate:
        return mean_with_interval(self.values(setting, measure), self.scans)

    def difference(self, one: Setting, other: Setting, measure: str) -> Estimate:
        values = (self.values(setting, measure) for setting in (one, other))
        return paired_difference(*values, self.scans)

    def means_table(self) -> str:
        """Return the means of each setting, as Markdown."""
        rows = {}
        for target, loss, with_t in product(TARGETS, LOSSES, (False, True)):
            setting = (target, loss, with_t)
            title = f"{NAMES[loss]} on the {target}{' + T' if with_t else ''}"
            rows[title] = [_text(self.mean(setting, name)) for name in MEASURES]
        return markdown(pd.DataFrame.from_dict(rows, "index", columns=[*MEASURES.values()]))

    def pairs(self) -> dict[str, tuple[tuple[str, str], tuple[str, str]]]:
        """Return the differences of the protocol's family, as target and loss, by title."""
        pairs = {}
        for target, loss in product(TARGETS, ("nacl", "svls")):
            title = f"{NAMES[loss]} - CE, on the {target}"
            pairs[title] = ((target, loss), (target, "cross_entropy"))
        for loss in LOSSES:
            pairs[f"mean - majority, {NAMES[loss]}"] = (("mean", loss), ("majority", loss))
        return pairs

    def differences(self, measure: str, with_t: bool = False) -> dict[str, Estimate]:
        """Return the differences of the family, with p-values that are corrected for it."""
        found = {
            title: self.difference((*one, with_t), (*other, with_t), measure)
            for title, (one, other) in self.pairs().items()
        }
        p_values = holm([each.p_value for each in found.values()])
        return {
            title: each._replace(p_value=p)
            for (title, each), p in zip(found.items(), p_values, strict=True)
        }

    def differences_table(self) -> str:
        """Return the differences, as Markdown; the p-values are of the primary measure."""
        primary = self.differences(PRIMARY)
        columns = {
            "NLL, all voxels": [_text(each, "+") for each in primary.values()],
            "p, Holm": [_p(each.p_value) for each in primary.values()],
        }
        for measure, with_t in ((PRIMARY, True), ("nll_near", False), ("dsc", False)):
            title = f"{MEASURES[measure]}{', with T' if with_t else ''}"
            found = self.differences(measure, with_t)
            columns[title] = [_text(each, "+") for each in found.values()]
        return markdown(pd.DataFrame(columns, [*primary]))

    def within_table(self) -> str:
        """Return the DSC with a rater minus that of raters with each other, as Markdown."""
        rows = {}
        for target, loss in product(TARGETS, LOSSES):
            values = self.values((target, loss, False), "dsc")
            expected = np.broadcast_to(self.raters_dsc[self.scans].to_numpy(), values.shape)
            found = mean_with_interval(values - expected, self.scans)
            rows[f"{NAMES[loss]} on the {target}"] = [_text(found, "+")]
        return markdown(pd.DataFrame.from_dict(rows, "index", columns=["DSC - DSC of raters"]))


def retina_table() -> str:
    """Return the means of the strangers' networks over images, against each rater and all."""
    rows = read_rows("retina.csv")
    measures = ["dsc", "nll_all", "ece_all", "ece_predicted", "gap"]
    means = rows.groupby(["set", "network", "with_t", "rater"], sort=False)[measures].mean()
    table = means.map("{:.3f}".format)
    names = {"drive": "DRIVE", "chase": "CHASE", "wnet": "W-Net", "m2unet": "M2U-Net"}
    table.index = pd.Index(
        f"{names[data]}, {names[network]}{' + T' if with_t else ''}, {rater}"
        for data, network, with_t, rater in table.index
    )
    titles = {"nll_all": "NLL, all voxels", "ece_all": "ECE, all voxels"}
    return markdown(table.rename(columns=MEASURES | titles))


def _text(found: Estimate, sign: str = "") -> str:
    text = f"{found.mean:{sign}.4f}"
    return f"{text} [{found.low:{sign}.4f}, {found.high:{sign}.4f}]"


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}"


if __name__ == "__main__":
    brains = Brains()
    for table in (
        brains.means_table(),
        brains.differences_table(),
        brains.within_table(),
        retina_table(),
    ):
        print(f"{table}\n")
