"""Sections by case: pictures, and all cases with their DSC, the worst first."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd

from calib_components.errors import printable
from calib_components.tools.report.data import WITHOUT, Results
from calib_components.tools.report.page import Picture, Section
from calib_components.tools.report.structures import expected_and_true
from calib_components.tools.report.tables import Cell, heading, number

OF_CASES = ("ece_predicted", "nll_all", "nll_predicted", "missed", "spurious")
ABOUT = "The lowest DSC comes first. Click a heading to sort by it."
ABOUT_MEAN = "The order is that of the mean over the columns."
ABOUT_PICTURES = (
    "The best, median and worst case by the DSC of the volume: the slice with the most foreground,"
    " and the entropy of its probabilities, if there are any. Contours have the colours of the"
    " classes."
)


def pictures_section(results: Results) -> Section:
    """Return the pictures of cases of each method, where they were kept."""
    pictures = []
    for (name, label), kind in itertools.product(
        results.labels.items(), ("worst", "median", "best")
    ):
        if (file := results.folders.get(name, Path("nowhere")) / f"cases/{kind}.png").exists():
            pictures.append(Picture(kind, f"{label}: {kind} case", file.read_bytes()))
    return Section(
        "pictures",
        "Pictures of cases",
        ABOUT_PICTURES,
        pictures=pictures,
        folded=len(results.labels) > 1,
    )


def cases_section(results: Results) -> Section:
    """Return all cases, those with the lowest DSC first: of one method its measures, of several the
    DSC of each.
    """
    rows = results.rows(temperatures=[WITHOUT])
    patients, caption = results.patients(), ABOUT
    if len(rows) > 1:
        table = pd.DataFrame({results.label(row): results.of_cases(row, "dsc") for row in rows})
        titles, caption = {name: f"DSC {name} ↑" for name in table}, f"{caption} {ABOUT_MEAN}"
    else:
        values = {"dsc": results.of_cases(rows[0], "dsc")}
        if results.has("aurc"):  # it has probabilities
            expected, true = expected_and_true(results, rows[0])
            values |= {"expected_dsc": expected, "optimism": expected - true}
        further = [*(f"dsc_{name}" for name in results.structures), *OF_CASES]
        table = pd.DataFrame(
            values
            | {name: results.of_cases(rows[0], name) for name in further if results.has(name)}
        )
        titles = {name: heading(name, results.structures) for name in table}
    table = table.set_axis(patients.index.rename("case"))
    table = table.iloc[np.argsort(table[[*titles][: len(rows)]].mean(axis=1), kind="stable")]
    shown = pd.DataFrame({
        titles[name]: [Cell(number(value, name if name in OF_CASES else "dsc", name == "optimism")) for value in column]
        for name, column in table.items()
    }, index=table.index.map(printable))  # fmt: skip
    if not (patients == patients.index).all():
        shown.insert(0, "patient", [Cell(printable(name)) for name in patients[table.index]])
    return Section("all_cases", "All cases", caption, shown, table.reset_index())
