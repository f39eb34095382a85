"""Whether estimates of quality find the bad segmentations, where the truth is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from calib_components.quality import ESTIMATES, Reference, mean_estimate
from calib_components.quality.ranking import BAD, rank_scans
from calib_components.quality.reference import holding_patients
from calib_tools.report.data import Context, Results
from calib_tools.report.statistics import Array
from calib_workflows.evaluation_files import Evaluation
from calib_workflows.pages.numbers import to_cell
from calib_workflows.pages.page import Section

# Of the values of a `Ranking`
TITLES = ("gap closed ↑", "ROC ↑", "found in 20 % ↑", "Spearman ↑", "AURC ↓")
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
# Of a structure, what its limits are about
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


def count_held(limits: ArrayLike, values: ArrayLike, patients: Sequence[str]) -> tuple[int, int]:
    """Count the patients whose value lies within its limits, `(scans, 2)`, in all scans; scans
    without either (NaN) are left out.

    Returns:
        Their number, and the number of patients.
    """
    table = pd.DataFrame(np.column_stack([limits, values]), columns=["low", "high", "value"])
    table = table.assign(patient=[*patients]).dropna()
    is_held = table["value"].between(table["low"], table["high"])
    held = is_held.groupby(table["patient"]).all()
    return int(held.sum()), len(held)


def quality_section(context: Context) -> Section | None:
    """Return how well estimates of one network order the scans."""
    results, name = context.results, context.reference
    if len(results.names) > 1 or not results.has("ece_all"):
        return None
    known = reference_of(context.validation or results.evaluations[name])
    dsc = results.values(name, "dsc")
    records: list[dict[str, Any]] = []
    for title, values in _estimates(results, name, known).items():
        records += _rank(results, title, values, dsc)
    optimism = to_cell({**results.record(name, "optimism"), "p_value": np.nan})
    text = ABOUT.format(bad=(dsc < BAD).sum(), scans=len(dsc), optimism=optimism)
    if records[0]["low"] <= 0:
        text += NOT_SHOWN
    title = "Does the expected DSC find the bad scans?"
    return Section("quality", title, text, records, ["score"])


def _estimates(results: Results, name: str, known: Reference) -> dict[str, Array]:
    """Return the estimates of each scan by title: means over structures, `(scans,)`."""
    measures = [(each.name, each.title, each.better) for each in ESTIMATES if each.better]
    estimates = {}
    for measure, title, better in (*measures, ("confidence", "mean confidence", "higher")):
        columns = [f"{measure}_{structure}" for structure in results.structures]
        if not results.has(*columns):
            continue
        scores = results.cases[name][columns].set_axis(results.structures, axis=1)
        if better == "lower":
            title, scores = f"1 - {title}", 1 - scores
        scans = scores.to_dict("records")
        estimates[title] = np.array([mean_estimate(scan, known.always) for scan in scans])
    return estimates


def _rank(results: Results, score: str, estimates: ArrayLike, dsc: Array) -> list[dict[str, Any]]:
    """Return the records of a score."""
    ranking = rank_scans(estimates, dsc, results.patients)
    cases = int((~np.isnan(estimates) & ~np.isnan(dsc)).sum())
    return [
        {"score": score, "measure": title, "mean": mean, "low": low, "high": high, "cases": cases}
        for title, (mean, low, high) in zip(TITLES, ranking, strict=True)
    ]


def limits_section(context: Context) -> Section | None:
    """Return for how many patients the limits of validation cases hold, for each structure."""
    results, name = context.results, context.reference
    if context.validation is None or not results.has("ece_all"):
        return None
    known = reference_of(context.validation)
    records = [
        record
        for structure in results.structures
        for record in _count_limits(results, name, structure, known)
    ]
    if not records:
        return None
    records = [{**record, "text": HELD.format(**record)} for record in records]
    text = ABOUT_LIMITS.format(note=known.note)
    return Section("limits", "Do the limits hold?", text, records, ["structure"], "limit")


def find_limits(
    known: Reference, structure: str, scans: Mapping[str, Array]
) -> dict[str, tuple[Array, Array]]:
    """Return the limits of a structure, `(scans, 2)`, and what should lie within them, by title.

    Args:
        known: The validation scans.
        structure: Name of the structure.
        scans: Its `expected_dsc`, `dsc`, `expected_volume` and `true_volume`, `(scans,)` each.
    """
    dsc = scans["dsc"]
    lowest = known.lower_bound(structure, scans["expected_dsc"])
    ranges = np.column_stack(known.volume_range(structure, scans["expected_volume"]))
    # A structure in neither prediction nor label has no range
    volume = scans["true_volume"] + 0 * dsc
    return {
        "DSC at least": (np.column_stack([lowest, np.ones_like(dsc)]), dsc),
        "volume in its range": (ranges, volume),
    }


def _count_limits(
    results: Results, name: str, structure: str, known: Reference
) -> list[dict[str, Any]]:
    """Return how many patients have their DSC and their volume within the limits."""
    scans = {each: results.values(name, f"{each}_{structure}") for each in LIMITED}
    records = []
    for title, (limits, values) in find_limits(known, structure, scans).items():
        held, count = count_held(limits, values, results.patients)
        if count:
            low, high = holding_patients(known.count_patients(structure), count)
            record = {"structure": structure, "limit": title, "held": held, "patients": count}
            width = np.nanmedian(np.diff(limits))
            records.append({**record, "low": low, "high": high, "median_width": width})
    return records
