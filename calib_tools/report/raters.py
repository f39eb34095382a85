"""Sections with a line for each of several raters, or of several networks."""

from __future__ import annotations

import math
from typing import Any

from calib_tools.report.data import Context, Results
from calib_tools.report.statistics import mean_with_interval
from calib_workflows.pages.numbers import heading, to_cell
from calib_workflows.pages.page import Picture, Section
from calib_workflows.parts import IN_RANGE, RATERS_DSC, TABLES

SHOWN = ("dsc", "hd95", "ece_predicted", "nll_all")
OWN = {RATERS_DSC: "DSC with raters", IN_RANGE: "volume in range"}
ABOUT_RATERS = (
    "The network against each rater, and against all: a voxel and a rater are one observation."
    " DSC with raters: of a rater with the others. Volume in range: share of the scans in which the"
    " rater's volume lies between those with p above 0.95 and above 0.05. {within} The picture"
    " shows the slice in which the raters disagree most."
)
WITHIN = (
    "{structure}: the DSC with a rater, minus that of raters with each other, is {value}; {kind}."
)
KINDS = {
    "within": "it is not shown to agree less with a rater than raters do with each other",
    "above": "it agrees more with a rater than raters do with each other",
    "below": "it agrees less with a rater than raters do with each other",
    "unknown": "six patients or more would tell whether it is within the raters",
}
ABOUT_MEMBERS = "Each network beside the average of their probabilities."


def raters_section(context: Context) -> Section | None:
    """Return a line for each rater and structure, whether the network is within the raters, and a
    picture.
    """
    records, lines = _records(context, "raters")
    if not records:
        return None
    results, name = context.results, context.reference
    within = " ".join(_judge(results, name, structure) for structure in results.structures)
    file = results.folders[name] / "cases" / "raters.png"
    pictures = [Picture("raters", "", file.read_bytes())] if file.exists() else []
    title, text = "Whom does it agree with?", ABOUT_RATERS.format(within=within)
    return Section("raters_means", title, text, records, lines, "title", pictures, folded=False)


def members_section(context: Context) -> Section | None:
    """Return a line for each network of an average, and structure."""
    records, lines = _records(context, "members")
    title = "Networks and their average"
    if not records:
        return None
    return Section("members_means", title, ABOUT_MEMBERS, records, lines, "title")


def _judge(results: Results, name: str, structure: str) -> str:
    """Return whether the network is within the raters, by the interval over patients."""
    cases = results.cases[name]
    difference = cases[f"dsc_{structure}"] - cases[f"{RATERS_DSC}_{structure}"]
    found = mean_with_interval(difference, [*results.patients])
    kind = "within" if found.has_interval else "unknown"
    if found.low > 0:
        kind = "above"
    if found.high < 0:
        kind = "below"
    value = to_cell({"measure": "dsc", **found._asdict(), "p_value": math.nan, "signed": True})
    return WITHIN.format(structure=structure, value=value, kind=KINDS[kind])


def _records(context: Context, kind: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the table of raters or members of the only evaluation of a report, and what names its
    lines; empty without them.
    """
    results = context.results
    part = results.evaluations[context.reference].parts.get(kind)
    if part is None or len(results.names) > 1:
        return [], []
    column, _ = TABLES[kind]
    lines = [column, "structure"] if len(results.structures) > 1 else [column]
    titles = {name: heading(name, results.structures) for name in SHOWN} | OWN
    records = [
        {**{line: row[line] for line in lines}, "title": title, "measure": name, "mean": row[name]}
        for row in part.to_dict("records")
        for name, title in titles.items()
        if name in part
    ]
    return records, lines
