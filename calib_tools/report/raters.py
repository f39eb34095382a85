"""Sections with a line for each of several raters, or of several networks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pandas as pd

from calib_components.metrics.intervals import interval
from calib_tools.report.data import Context, Results
from calib_workflows.pages.numbers import heading, to_cell
from calib_workflows.pages.page import Section
from calib_workflows.parts import IN_RANGE, RATERS_DSC, TABLES

SHOWN = ("dsc", "hd95", "ece_predicted", "nll_all")
MINUS = "DSC minus DSC of raters"
OWN = {RATERS_DSC: "DSC with raters", IN_RANGE: "volume in range"}
ABOUT_RATERS = (
    "The network against each rater, and against all: a voxel and a rater are one observation."
    " DSC with raters: of a rater with the others. Volume in range: share of the scans in which the"
    " rater's volume lies between those of the voxels with a probability above 0.95 and above 0.05."
    " The picture shows the slice in which the raters disagree most."
)
AGREEMENT = "{kind}: its DSC with a rater minus theirs with each other is {value}."
KINDS = {
    "within": "The network agrees with raters as they agree with each other, as far as is shown",
    "above": "The network agrees with raters more than they agree with each other",
    "below": "The network agrees with raters less than they agree with each other",
    "unknown": "Whether the network agrees with raters as they agree with each other is unknown, as"
    " intervals need six patients",
}
ABOUT_MEMBERS = "Each network beside the average of their probabilities."


def raters_section(context: Context) -> Section | None:
    """Return a line for each rater and structure, and a picture."""
    results = context.results
    section = _section(results, "raters", "Whom does it agree with?", ABOUT_RATERS)
    if section is None:
        return None
    column, everyone = TABLES["raters"]
    rows = [
        {column: everyone, "structure": structure, "title": MINUS, "signed": True, **found}
        for structure, found in _differences(results).items()
    ]
    table = pd.concat([section.table, pd.DataFrame(rows)], ignore_index=True)
    pictures = results.pictures(results.names[0], "raters")
    return replace(section, table=table, pictures=pictures, folded=False)


def describe_raters(results: Results) -> list[str]:
    """Return whether the network agrees with raters as they do with each other, for each structure;
    nothing without raters.
    """
    if results.part("raters") is None:
        return []
    sentences = []
    for structure, found in _differences(results).items():
        kind = "unknown" if math.isnan(found["low"]) else "within"
        if found["low"] > 0 or found["high"] < 0:
            kind = "above" if found["low"] > 0 else "below"
        value = to_cell({**found, "signed": True})
        place = f"{structure}: " if len(results.structures) > 1 else ""
        sentences.append(place + AGREEMENT.format(kind=KINDS[kind], value=value))
    return sentences


def members_section(context: Context) -> Section | None:
    """Return a line for each network of an average, and structure."""
    return _section(context.results, "members", "Networks and their average", ABOUT_MEMBERS)


def _section(results: Results, kind: str, title: str, text: str) -> Section | None:
    """Return the section of the raters or members of the only evaluation of a report, if it has
    any.
    """
    part, (column, _) = results.part(kind), TABLES[kind]
    if part is None:
        return None
    lines = [column, "structure"] if len(results.structures) > 1 else [column]
    titles = {name: heading(name, results.structures) for name in SHOWN} | OWN
    measures = [name for name in titles if name in part]
    table = part.melt(lines, measures, "measure", "mean")
    table["title"] = table["measure"].map(titles)
    return Section(f"{kind}_means", title, text, table, lines, "title")


def _differences(results: Results) -> dict[str, dict[str, Any]]:
    """Return the DSC of the network with a rater minus that of raters with each other, for each
    structure: its mean and the interval over patients.
    """
    (cases,) = results.cases.values()
    differences = {}
    for structure in results.structures:
        difference = cases[f"dsc_{structure}"] - cases[f"{RATERS_DSC}_{structure}"]
        found = interval(difference, [*results.patients])
        differences[structure] = {"measure": "dsc", **found._asdict()}
    return differences
