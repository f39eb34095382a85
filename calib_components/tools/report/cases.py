"""Sections by case: pictures, and all cases with their DSC, the worst first."""

from __future__ import annotations

import pandas as pd

from calib_components.errors import printable
from calib_components.tools.report.data import Context, Results
from calib_components.tools.report.page import Picture, Section
from calib_components.tools.report.tables import SIGNED, Cell, heading, number

FURTHER = ("ece_predicted", "nll_all", "nll_predicted", "missed", "spurious")
ABOUT = "The lowest DSC comes first. Click a heading to sort by it."
ABOUT_PICTURES = (
    "The best, median and worst case by the DSC of the volume: the slice with the most wrong"
    " voxels, and the entropy of its probabilities, if there are any. Contours have the colours of"
    " the classes."
)


def pictures_section(context: Context) -> Section | None:
    """Return the pictures of cases of each evaluation, where they were kept."""
    results = context.results
    pictures = []
    for name, folder in results.folders.items():
        for kind in ("worst", "median", "best"):
            file = folder / "cases" / f"{kind}.png"
            if file.exists():
                title = f"{results.labels[name]}: {kind} case"
                pictures.append(Picture(kind, title, file.read_bytes()))
    is_folded = len(results.names) > 1
    title = "Pictures of cases"
    return Section("pictures", title, ABOUT_PICTURES, pictures=pictures, folded=is_folded)


def cases_section(context: Context) -> Section | None:
    """Return all cases, those with the lowest DSC first.

    Of one evaluation, they have its measures; of several, the DSC of each.
    """
    results = context.results
    numbers, titles = _numbers(results)
    numbers = numbers.sort_values(numbers.columns[0], kind="stable")
    cells = {
        title: [Cell(number(value, name, name in SIGNED)) for value in numbers[name]]
        for title, name in zip(titles, numbers, strict=True)
    }
    table = pd.DataFrame(cells, numbers.index.map(printable))
    patients = results.patients[numbers.index]
    if not (patients == patients.index).all():
        table.insert(0, "patient", [Cell(printable(patient)) for patient in patients])
    return Section("all_cases", "All cases", ABOUT, table, numbers.reset_index())


def _numbers(results: Results) -> tuple[pd.DataFrame, list[str]]:
    """Return what is shown of each case, and the titles of its columns."""
    if len(results.names) > 1:
        values = {label: results.values(name, "dsc") for name, label in results.labels.items()}
        titles = [f"DSC {label} ↑" for label in values]
    else:
        by_structure = [f"dsc_{structure}" for structure in results.structures]
        measures = ["dsc", "expected_dsc", "optimism", *by_structure, *FURTHER]
        shown = [measure for measure in measures if results.has(measure)]
        values = {measure: results.values(results.names[0], measure) for measure in shown}
        titles = [heading(measure, results.structures) for measure in shown]
    return pd.DataFrame(values, results.patients.index.rename("case")), titles
