"""Sections with a line for each of several raters, or of several networks."""

from __future__ import annotations

import math
from dataclasses import replace

from calib_tools.report.data import Context, Results
from calib_tools.report.statistics import mean_with_interval
from calib_workflows.pages.numbers import heading, to_cell
from calib_workflows.pages.page import Section
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
    results = context.results
    section = _section(results, "raters", "Whom does it agree with?")
    if section is None:
        return None
    within = " ".join(_judge(results, structure) for structure in results.structures)
    text = ABOUT_RATERS.format(within=within)
    pictures = results.pictures(results.names[0], "raters")
    return replace(section, text=text, pictures=pictures, folded=False)


def members_section(context: Context) -> Section | None:
    """Return a line for each network of an average, and structure."""
    return _section(context.results, "members", "Networks and their average", ABOUT_MEMBERS)


def _section(results: Results, kind: str, title: str, text: str = "") -> Section | None:
    """Return the section of the raters or members of the only evaluation of a report, if it has
    any.
    """
    evaluation, *others = results.evaluations.values()
    if others or kind not in evaluation.parts:
        return None
    part, (column, _) = evaluation.parts[kind], TABLES[kind]
    lines = [column, "structure"] if len(results.structures) > 1 else [column]
    titles = {name: heading(name, results.structures) for name in SHOWN} | OWN
    measures = [name for name in titles if name in part]
    table = part.melt(lines, measures, "measure", "mean")
    table["title"] = table["measure"].map(titles)
    return Section(f"{kind}_means", title, text, table, lines, "title")


def _judge(results: Results, structure: str) -> str:
    """Return whether the network is within the raters, by the interval over patients."""
    (cases,) = results.cases.values()
    difference = cases[f"dsc_{structure}"] - cases[f"{RATERS_DSC}_{structure}"]
    found = mean_with_interval(difference, [*results.patients])
    kind = "unknown" if math.isnan(found.low) else "within"
    if found.low > 0 or found.high < 0:
        kind = "above" if found.low > 0 else "below"
    value = to_cell({"measure": "dsc", **found._asdict(), "signed": True})
    return WITHIN.format(structure=structure, value=value, kind=KINDS[kind])
