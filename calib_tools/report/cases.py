"""Sections by case: which to look at, the lowest DSC first, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd

from calib_components.errors import printable
from calib_tools.report.data import Context, Results
from calib_workflows.pages.numbers import heading
from calib_workflows.pages.page import Picture, Section

# Objects, such as lesions, can be missed while their structure is found
TITLES = {"missed": "structures missed", "spurious": "structures spurious"}
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
    order = np.argsort(results.values(results.names[0], "dsc"), kind="stable")
    cases, patients = results.patients.index[order], results.patients.iloc[order]
    names = pd.DataFrame({"case": [*map(printable, cases)]})
    if not (patients == cases).all():
        names["patient"] = [*map(printable, patients)]
    table = pd.concat(
        names.assign(title=title, measure=measure, mean=results.values(name, measure)[order])
        for title, (name, measure) in _columns(results).items()
    )
    pictures = _pictures(results, ["worst"]) if len(results.names) == 1 else []
    return Section(
        "all_cases",
        "Which cases to look at",
        ABOUT,
        table,
        [*names],
        "title",
        pictures,
        folded=False,
        first=LOWEST,
    )


def pictures_section(context: Context) -> Section | None:
    """Return the pictures of cases of each evaluation, where they were kept."""
    pictures = _pictures(context.results, ["worst", "median", "best"])
    if not pictures:
        return None
    return Section("pictures", "Pictures of cases", ABOUT_PICTURES, pictures=pictures)


def _pictures(results: Results, kinds: Sequence[str]) -> list[Picture]:
    return [
        picture._replace(name=f"{kind}_{name}", title=f"{results.labels[name]}: {kind} case")
        for kind, name in product(kinds, results.folders)
        for picture in results.pictures(name, kind)
    ]


def _columns(results: Results) -> Mapping[str, tuple[str, str]]:
    """Return the evaluation and measure of each column, by its title."""
    if len(results.names) > 1:
        return {f"DSC {label} ↑": (name, "dsc") for name, label in results.labels.items()}
    structures = results.structures if len(results.structures) > 1 else []
    measures = ["dsc", "expected_dsc", *(f"dsc_{each}" for each in structures)]
    return {
        TITLES.get(measure, heading(measure, results.structures)): (results.names[0], measure)
        for measure in (*measures, "missed", "spurious")
        if results.has(measure)
    }
