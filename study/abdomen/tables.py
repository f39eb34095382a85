"""Tables of the abdomen, from the rows of `study.abdomen.run`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from calib_components.quality.ranking import order
from calib_tools.report.data import derive
from study.compare.compact import read_compact
from study.compare.settings import TABLE1
from study.compare.statistics import paired_difference
from study.tables.networks import markdown
from study.tables.networks import text as with_interval

RESULTS = Path(__file__).resolve().parents[1] / "results" / "abdomen"
ORGANS = ("liver", "kidneys", "spleen", "pancreas")


def tested(method: str) -> pd.DataFrame:
    """Return what the networks of our regime gave of the patients that they have not seen."""
    cases = read_compact(RESULTS / "ours").cases
    own = cases[(cases["method"] == method) & (cases["test_set"] == "")]
    return derive(own, ORGANS).set_index("case").sort_index()


def means(table: pd.DataFrame, measure: str, minus: str = "") -> list[float]:
    """Return the mean of a measure of each organ, or of its difference from another, over the
    patients that have it.
    """
    found = []
    for organ in ORGANS:
        values = table[f"{measure}_{organ}"]
        found.append((values - table[f"{minus}_{organ}"] if minus else values).mean())
    return found


def gaps_closed(table: pd.DataFrame) -> list[float]:
    """Return how much of the gap between a random and the perfect order of the patients the
    expected DSC of each organ closes; 0 is expected of an organ that is not found.
    """
    pairs = [(f"expected_dsc_{organ}", f"dsc_{organ}") for organ in ORGANS]
    return [order(*table[[*pair]].fillna(0).to_numpy().T)[0] for pair in pairs]


def patients_table(method: str) -> str:
    """Return the DSC of each organ of each patient, by the network that has not seen the patient,
    and the means.
    """
    table = tested(method)
    rows = {
        case.removeprefix("train_"): [f"{row[f'dsc_{organ}']:.2f}" for organ in ORGANS]
        for case, row in table.iterrows()
    }
    rows["mean"] = [f"{mean:.2f}" for mean in means(table, "dsc")]
    return markdown(rows, [*ORGANS])


def organs_table(method: str, other: str) -> str:
    """Return means over the patients, by organ: the DSC, also of another method and of the second
    and third fold alone, HD95, confidence minus accuracy and the bias of the expected DSC.
    """
    table = tested(method)
    rows = {
        "DSC": (means(table, "dsc"), ".2f"),
        "... of the second and third fold": (means(table[table["fold"] > 0], "dsc"), ".2f"),
        "... with intensities as they are": (means(tested(other), "dsc"), ".2f"),
        "HD95, mm": (means(table, "hd95"), ".0f"),
        "confidence - accuracy": (means(table, "confidence", "accuracy"), "+.2f"),
        "expected DSC - DSC": (means(table, "expected_dsc", "dsc"), "+.2f"),
        "gap closed by the expected DSC": (gaps_closed(table), ".2f"),
    }
    texts = {name: [f"{value:{form}}" for value in row] for name, (row, form) in rows.items()}
    return markdown(texts, [*ORGANS])


def mean_magnitudes() -> pd.DataFrame:
    """Return the mean magnitude of the logits of each patient (rows) by each loss of the paper, all
    true classes and all logits alike.
    """
    table = pd.read_csv(RESULTS / "authors" / "magnitudes.csv")
    logits = table[table["voxels"] > 0].set_index(["method", "case"])[["background", *ORGANS]]
    by_patient = logits.mean(axis=1).groupby(level=[0, 1]).mean().unstack("method")
    return by_patient[[setting.loss for setting in TABLE1]]


def magnitudes_table() -> str:
    """Return the mean of `mean_magnitudes` by loss, and NACL's minus it with its interval."""
    found, labels = mean_magnitudes(), read_compact(RESULTS / "authors").labels
    rows: dict[str, list[str]] = {"mean magnitude of a logit": [], "NACL's minus it": []}
    for loss, values in found.items():
        change = paired_difference(found["nacl"], values, [*found.index])
        cells = f"{values.mean():.2f}", with_interval(change, "+", 2) if loss != "nacl" else "-"
        for row, cell in zip(rows.values(), cells, strict=True):
            row.append(cell)
    return markdown(rows, [labels[loss] for loss in found])
