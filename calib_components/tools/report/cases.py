"""Sections by case: pictures, and all cases with their DSC, the worst first."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from calib_components.errors import printable
from calib_components.tools.report.data import Context, Results
from calib_components.tools.report.page import Picture, Section
from calib_components.tools.report.tables import Cell, heading, number

FURTHER = ("ece_predicted", "nll_all", "nll_predicted", "missed", "spurious")
ABOUT = "The lowest DSC comes first. Click a heading to sort by it."
ABOUT_MEAN = "The order is that of the mean over the columns."
ABOUT_PICTURES = (
    "The best, median and worst case by the DSC of the volume: the slice with the most foreground,"
    " and the entropy of its probabilities, if there are any. Contours have the colours of the"
    " classes."
)


def pictures_section(context: Context) -> Section | None:
    """Return the pictures of cases of each evaluation, where they were kept."""
    results = context.results
    files = {
        (label, kind): results.folders[name] / "cases" / f"{kind}.png"
        for name, label in results.labels.items()
        if name in results.folders
        for kind in ("worst", "median", "best")
    }
    pictures = [
        Picture(kind, f"{label}: {kind} case", file.read_bytes())
        for (label, kind), file in files.items()
        if file.exists()
    ]
    is_folded = len(results.names) > 1
    title = "Pictures of cases"
    return Section("pictures", title, ABOUT_PICTURES, pictures=pictures, folded=is_folded)


def cases_section(context: Context) -> Section | None:
    """Return all cases, those with the lowest DSC first.

    Of one evaluation, they have its measures; of several, the DSC of each.
    """
    results, caption = context.results, ABOUT
    if len(results.names) > 1:
        caption = f"{ABOUT} {ABOUT_MEAN}"
        columns = {f"DSC {label} ↑": (name, "dsc") for name, label in results.labels.items()}
        table = _table(results, columns)
        names, order = [*results.labels.values()], table.mean(axis=1)
    else:
        columns = _columns(results, *results.names)
        table = _table(results, columns)
        names = [measure for _, measure in columns.values()]
        order = table.iloc[:, 0]  # its DSC
    table = table.iloc[np.argsort(order, kind="stable")]
    shown = pd.DataFrame(
        {title: [_cell(x, columns[title][1]) for x in table[title]] for title in columns},
        index=table.index.map(printable),
    )
    if not (results.patients == results.patients.index).all():
        patients = results.patients[table.index]
        shown.insert(0, "patient", [Cell(printable(name)) for name in patients])
    numbers = table.set_axis(names, axis=1).reset_index()
    return Section("all_cases", "All cases", caption, shown, numbers)


def _columns(results: Results, name: str) -> dict[str, tuple[str, str]]:
    """Return the measures of one evaluation by their headings."""
    structure_measures = [f"dsc_{structure}" for structure in results.structures]
    measures = ["dsc", "expected_dsc", "optimism", *structure_measures, *FURTHER]
    shown = [measure for measure in measures if results.has(measure)]
    return {heading(measure, results.structures): (name, measure) for measure in shown}


def _table(results: Results, columns: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """Return values of cases, of evaluations and measures by column."""
    values = {title: results.values(*place) for title, place in columns.items()}
    return pd.DataFrame(values, results.patients.index.rename("case"))


def _cell(value: float, measure: str) -> Cell:
    unit = measure if measure in FURTHER else "dsc"
    return Cell(number(value, unit, signed=measure == "optimism"))
