"""Sections by case: which to look at, the lowest DSC first, and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from calib_components.errors import printable
from calib_tools.report.data import Context, Results
from calib_tools.report.statistics import Array
from calib_workflows.pages.numbers import heading
from calib_workflows.pages.page import Picture, Section

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
    columns = [*_columns(results)]
    order = np.argsort(columns[0][2], kind="stable")
    has_patients = not (results.patients == results.patients.index).all()
    records = []
    for place in order.tolist():
        line = {"case": printable(results.patients.index[place])}
        if has_patients:
            line["patient"] = printable(results.patients.iloc[place])
        for title, measure, values in columns:
            records.append({**line, "title": title, "measure": measure, "mean": values[place]})
    lines = ["case", "patient"] if has_patients else ["case"]
    pictures = _pictures(results, ["worst"]) if len(results.names) == 1 else []
    title = "Which cases to look at"
    return Section(
        "all_cases", title, ABOUT, records, lines, "title", pictures, folded=False, first=LOWEST
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


def _columns(results: Results) -> Iterator[tuple[str, str, Array]]:
    """Yield title, measure and values of each column."""
    if len(results.names) > 1:
        for name, label in results.labels.items():
            yield f"DSC {label} ↑", "dsc", results.values(name, "dsc")
        return
    structures = results.structures if len(results.structures) > 1 else []
    measures = ["dsc", "expected_dsc", *(f"dsc_{each}" for each in structures)]
    for measure in (*measures, "missed", "spurious"):
        if results.has(measure):
            title = heading(measure, results.structures)
            yield title, measure, results.values(results.names[0], measure)
