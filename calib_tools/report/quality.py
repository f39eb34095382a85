"""Whether estimates of quality find the bad segmentations, where the truth is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from calib_components.quality import ESTIMATES, Reference, mean_estimate
from calib_components.quality.ranking import BAD, rank_scans
from calib_components.quality.reference import holding_patients
from calib_tools.report.data import Context, Results
from calib_tools.report.statistics import Array
from calib_workflows.evaluation_files import Evaluation
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
    " expected, with a probability of 95 %, if they are like the validation patients. {note}"
)
HELD = "{held} of {patients} ({low} to {high})"
NOT_SHOWN = (
    "The expected DSC is not shown to order these scans: the interval of the gap closed holds 0. "
)
# The limits of a structure are made of these
LIMITED = ("expected_dsc", "dsc", "expected_volume", "true_volume")


def reference_of(evaluation: Evaluation, patient_pattern: str | None = None) -> Reference:
    """Return the reference that an evaluation of validation cases is, of probabilities, for scans
    of the same model.
    """
    patients = [item["patient"] for item in evaluation.items(patient_pattern)]
    values = [
        evaluation.cases[[f"{measure}_{name}" for name in evaluation.structures]]
        for measure in LIMITED
    ]
    return Reference.from_scans(evaluation.structures, patients, np.stack(values, -1))


def count_held(limits: pd.DataFrame, patients: Sequence[str]) -> tuple[int, int]:
    """Count the patients whose values lie within the limits in all scans, see `find_limits`; scans
    without value or limits (NaN) are left out.

    Returns:
        Their number, and the number of patients.
    """
    table = limits.assign(patient=[*patients]).dropna()
    is_held = table["value"].between(table["low"], table["high"])
    held = is_held.groupby(table["patient"]).all()
    return int(held.sum()), len(held)


def quality_section(context: Context) -> Section | None:
    """Return how well estimates of one network order the scans."""
    results, name = context.results, context.results.names[0]
    if len(results.names) > 1 or not results.has("ece_all"):
        return None
    known = reference_of(context.validation or results.evaluations[name])
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
    """Return for how many patients the limits of validation cases hold, for each structure."""
    results, name = context.results, context.results.names[0]
    if context.validation is None or not results.has("ece_all"):
        return None
    known, rows = reference_of(context.validation), []
    for structure in results.structures:
        scans = {each: results.values(name, f"{each}_{structure}") for each in LIMITED}
        for title, limits in find_limits(known, structure, scans).items():
            held, count = count_held(limits, results.patients)
            if count:
                low, high = holding_patients(known.count_patients(structure), count)
                numbers = {"held": held, "patients": count, "low": low, "high": high}
                width = (limits["high"] - limits["low"]).median()
                row = {"structure": structure, "limit": title, **numbers, "median_width": width}
                rows.append({**row, "text": HELD.format(**numbers)})
    if not rows:
        return None
    text, table = ABOUT_LIMITS.format(note=known.note), pd.DataFrame(rows)
    return Section("limits", "Do the limits hold?", text, table, ["structure"], "limit")


def find_limits(
    known: Reference, structure: str, scans: Mapping[str, Array]
) -> dict[str, pd.DataFrame]:
    """Return the limits of a structure in each scan, `low` and `high`, and the `value` that should
    lie within them, by title.

    Args:
        known: The validation scans.
        structure: Name of the structure.
        scans: Its `expected_dsc`, `dsc`, `expected_volume` and `true_volume`, `(scans,)` each.
    """
    dsc = scans["dsc"]
    lowest = known.lower_bound(structure, scans["expected_dsc"])
    low, high = known.volume_range(structure, scans["expected_volume"])
    volume = scans["true_volume"] + 0 * dsc  # NaN if it is in neither prediction nor label
    return {
        "DSC at least": pd.DataFrame({"low": lowest, "high": 1.0, "value": dsc}),
        "volume in its range": pd.DataFrame({"low": low, "high": high, "value": volume}),
    }
