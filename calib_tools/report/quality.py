"""Whether estimates of quality find the bad segmentations, where the truth is known."""

from __future__ import annotations

import pandas as pd

from calib_components.quality import ESTIMATES, Reference, mean_estimate
from calib_components.quality.ranking import BAD, rank_scans
from calib_tools.report.data import Context, Results
from calib_workflows.pages.numbers import to_cell
from calib_workflows.pages.page import Section

# The values of a `Ranking`
TITLES = ["gap closed ↑", "ROC ↑", "found in 20 % ↑", "Spearman ↑", "AURC ↓"]
ABOUT = (
    "Whether the probabilities alone order the scans as their DSC does. Gap closed: 1 for the order"
    " of the DSC, 0 for a random one. ROC: area under the ROC curve for a DSC below 0.7, as {bad}"
    " of {scans} scans have. Found: share of these scans among the 20 % with the lowest estimates."
    " Estimates of a scan are means over structures; a structure that should be there and is not"
    " predicted counts as 0. On average, the expected DSC minus the true one is {optimism}. "
)
ABOUT_LIMITS = (
    "Patients for whom the limit holds in every scan; in brackets, for how many that is to be"
    " expected, with a probability of 95 %, if they are like the validation patients. The limits of"
    " the DSC hold for all structures of a scan together, the range of each volume by itself."
)
NOT_SHOWN = (
    "The expected DSC is not shown to order these scans: the interval of the gap closed holds 0. "
)


def quality_section(context: Context) -> Section | None:
    """Return how well estimates of one network order the scans."""
    results, name = context.results, context.results.names[0]
    if len(results.names) > 1 or not results.has("ece_all"):
        return None
    known = (context.validation or results.evaluations[name]).reference()
    dsc = results.cases[name]["dsc"]
    rankings = {}
    for title, estimates in _estimates(results, known).items():
        ranking = pd.DataFrame(rank_scans(estimates, dsc, results.patients), TITLES)
        rankings[title] = ranking.assign(cases=(estimates + dsc).count())
    table = pd.concat(rankings, names=["score", "measure"]).reset_index()
    table = table.rename(columns={0: "mean", 1: "low", 2: "high"})
    optimism = to_cell(results.record(name, "optimism"))
    text = ABOUT.format(bad=(dsc < BAD).sum(), scans=len(dsc), optimism=optimism)
    if table["low"][0] <= 0:
        text += NOT_SHOWN
    title = "Does the expected DSC find the bad scans?"
    return Section("quality", title, text, table, ["score"])


def _estimates(results: Results, known: Reference) -> dict[str, pd.Series]:
    """Return the estimates of each scan by title: means over structures, `(scans,)`."""
    measures = [(each.name, each.title, each.better) for each in ESTIMATES if each.better]
    estimates, (cases,) = {}, results.cases.values()
    for measure, title, better in (*measures, ("confidence", "mean confidence", "higher")):
        columns = [f"{measure}_{structure}" for structure in results.structures]
        if not results.has(*columns):
            continue
        scores = cases[columns].set_axis(results.structures, axis=1)
        if better == "lower":
            title, scores = f"1 - {title}", 1 - scores
        estimates[title] = scores.apply(mean_estimate, axis=1, always=known.always)
    return estimates


def limits_section(context: Context) -> Section | None:
    """Return for how many patients the limits of validation cases hold."""
    results, name = context.results, context.results.names[0]
    if context.validation is None or not results.has("ece_all"):
        return None
    known = context.validation.reference()
    rows = []
    for limit, found in known.coverage(results.evaluations[name].reference()).items():
        low, high = found.expected or (None, None)
        numbers = {"held": found.held, "patients": found.patients, "low": low, "high": high}
        row = {"limit": limit, "measure": "patients", "text": str(found), "bold": found.fails}
        rows.append({**row, **numbers})
    if not rows:
        return None
    return Section("limits", "Do the limits hold?", ABOUT_LIMITS, pd.DataFrame(rows), ["limit"])
