"""Sections by case: which to look at, the lowest DSC first, and pictures."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from calib_components.errors import printable
from calib_tools.report.data import Context, Results
from calib_tools.report.page import Picture, Section
from calib_tools.report.tables import Cell, heading, number

LOWEST = 5  # cases that are not folded
ABOUT = "The lowest DSC comes first. Click a heading to sort by it."
ABOUT_PICTURES = (
    "Cases by the DSC of the volume: the slice with the most wrong voxels, and the entropy of its"
    " probabilities, if there are any. Contours have the colours of the classes."
)


def cases_section(context: Context) -> Section:
    """Return the cases, those with the lowest DSC first, and a picture of the worst.

    Of one evaluation, they have its measures; of several, the DSC of each.
    """
    results = context.results
    numbers, titles = _numbers(results)
    numbers = numbers.sort_values(numbers.columns[0], kind="stable")
    cells = {
        title: [Cell(number(value, name)) for value in numbers[name]]
        for title, name in zip(titles, numbers, strict=True)
    }
    table = pd.DataFrame(cells, numbers.index.map(printable))
    patients = results.patients[numbers.index]
    if not (patients == patients.index).all():
        table.insert(0, "patient", [Cell(printable(patient)) for patient in patients])
    pictures = _pictures(results, ["worst"]) if len(results.names) == 1 else []
    return Section(
        "all_cases",
        "Which cases to look at",
        ABOUT,
        table,
        numbers.reset_index(),
        pictures,
        folded=False,
        lines=LOWEST,
    )


def pictures_section(context: Context) -> Section:
    """Return the pictures of cases of each evaluation, where they were kept."""
    pictures = _pictures(context.results, ["worst", "median", "best"])
    return Section("pictures", "Pictures of cases", ABOUT_PICTURES, pictures=pictures)


def _pictures(results: Results, kinds: Iterable[str]) -> list[Picture]:
    pictures = []
    for kind in kinds:
        for name, folder in results.folders.items():
            file = folder / "cases" / f"{kind}.png"
            if file.exists():
                title = f"{results.labels[name]}: {kind} case"
                pictures.append(Picture(f"{kind}_{name}", title, file.read_bytes()))
    return pictures


def _numbers(results: Results) -> tuple[pd.DataFrame, list[str]]:
    """Return the measures of each case, and the titles of their columns."""
    if len(results.names) > 1:
        values = {label: results.values(name, "dsc") for name, label in results.labels.items()}
        titles = [f"DSC {label} ↑" for label in values]
    else:
        measures = ["dsc", "expected_dsc", "missed", "spurious"]
        if len(results.structures) > 1:
            measures[2:2] = [f"dsc_{structure}" for structure in results.structures]
        shown = [measure for measure in measures if results.has(measure)]
        values = {measure: results.values(results.names[0], measure) for measure in shown}
        titles = [heading(measure, results.structures) for measure in shown]
    return pd.DataFrame(values, results.patients.index.rename("case")), titles
