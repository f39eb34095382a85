"""Whether estimates of quality find the bad segmentations, where the truth is known."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from calib_components.handlers.evaluation_files import Evaluation
from calib_components.quality import ESTIMATES, Reference, mean_estimate
from calib_components.tools.report.data import Context, Results
from calib_components.tools.report.page import Section
from calib_components.tools.report.statistics import MIN_PATIENTS, SEED, Array, Estimate
from calib_components.tools.report.tables import tabulate

BAD, SHARE = 0.7, 0.2  # DSC below which a segmentation is bad; share of the scans that are reviewed
RESAMPLES = 1000
MEAN = "mean of structures"
TITLES = ("gap closed ↑", "ROC ↑", "found in 20 % ↑", "Spearman ↑")  # of the values of a `Ranking`
ABOUT = (
    "Whether the probabilities alone order the scans as their DSC does. Gap closed: 1 for the order"
    " of the DSC, 0 for a random one. ROC: area under the ROC curve for a DSC below 0.7, as {bad}"
    " of {scans} scans have. Found: share of these scans among the 20 % with the lowest estimates."
    " Estimates of a scan are means over structures; a structure that should be there and is not"
    " predicted counts as 0. Intervals are over patients. "
)
ABOUT_BOUNDS = (
    "Patients for whom the lower bound of the DSC, at 90 %, holds in every scan: {held}. {note}"
)
NOT_SHOWN = (
    "The expected DSC is not shown to order these scans: the interval of the gap closed holds 0. "
)
DSC = ("expected_dsc", "dsc")


def reference_of(evaluation: Evaluation, patient_pattern: str | None = None) -> Reference:
    """Return the reference that an evaluation of validation cases is, of probabilities, for scans
    of the same model.
    """
    patients = [item["patient"] for item in evaluation.items(patient_pattern)]
    values = [
        evaluation.cases[[f"{measure}_{name}" for name in evaluation.structures]]
        for measure in ("expected_dsc", "dsc", "expected_volume", "true_volume")
    ]
    return Reference.from_scans(evaluation.structures, patients, np.stack(values, -1))


class Ranking(NamedTuple):
    """How estimates order scans, with 95 % intervals over patients; see `rank_scans`.

    Attributes:
        gap_closed: `(random - AURC) / (random - optimal)`: 1 for the order of the DSC, 0 by chance.
            AURC is the area under the risk-coverage curve: the mean over i of the mean of 1 - DSC
            of the i best estimates.
        roc: Area under the ROC curve for DSC below 0.7; NaN where no or every scan is, as the next
            one.
        found: Share of these scans that are among the 20 % with the lowest estimates.
        spearman: Spearman's rank correlation of estimate and DSC.
    """

    gap_closed: Estimate
    roc: Estimate
    found: Estimate
    spearman: Estimate


def rank_scans(estimates: ArrayLike, dsc: ArrayLike, patients: Sequence[str]) -> Ranking:
    """Compare estimates, which are higher for better segmentations, with the DSC of the same scans.

    Where estimates are equal, values are the mean over all orders of these scans. Scans without
    either (NaN) are left out. There are no intervals with fewer than six patients.
    """
    pair = np.array([estimates, dsc], float)
    defined = ~np.isnan(pair).any(0)
    pair = pair[:, defined]
    names = pd.Series(np.asarray(patients)[defined])
    scans = [*names.groupby(names).indices.values()]
    ends = np.full((2, len(Ranking._fields)), np.nan)
    if len(scans) >= MIN_PATIENTS:
        draws = np.random.default_rng(SEED).integers(len(scans), size=(RESAMPLES, len(scans)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # in some draws, no scan is below 0.7
            values = [order(*pair[:, np.concatenate([scans[i] for i in row])]) for row in draws]
            ends = np.nanquantile(values, [0.025, 0.975], axis=0)
    rows = np.stack([order(*pair), *ends], 1).tolist()
    return Ranking(*(Estimate(*row)._replace(cases=pair.shape[1]) for row in rows))


def order(estimates: Array, dsc: Array) -> Array:
    """Return the values of a `Ranking`, without intervals; see `rank_scans`."""
    number, risk, is_bad = len(dsc), 1 - dsc, (dsc < BAD).astype(float)
    best_first = np.argsort(-estimates)
    _, group, sizes = np.unique(-estimates[best_first], return_inverse=True, return_counts=True)

    def ordered(values: Array) -> Array:  # equal estimates have the mean of their values
        return (np.bincount(group, values[best_first]) / sizes)[group]

    kept, bad = np.arange(1, number + 1), is_bad.sum()
    aurc, optimal = ((values.cumsum() / kept).mean() for values in (ordered(risk), np.sort(risk)))
    ranks = stats.rankdata(estimates)
    reviewed = ordered(is_bad)[number - int(SHARE * number + 0.5) :]
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = (risk.mean() - aurc) / (risk.mean() - optimal)
        roc = 1 - (ranks @ is_bad - bad * (bad + 1) / 2) / (bad * (number - bad))
        found = reviewed.sum() / bad if bad < number else np.nan
        return np.array([gap, roc, found, np.corrcoef(ranks, stats.rankdata(dsc))[0, 1]])


def coverage(
    bounds: ArrayLike, dsc: ArrayLike, patients: Sequence[str]
) -> tuple[int, int, float, float]:
    """Count the patients whose DSC is at least its lower bound in all scans; those without either
    (NaN) are left out.

    Returns:
        Their number, the number of patients, and the 95 % interval of the share (Clopper and
        Pearson).
    """
    table = pd.DataFrame({"bound": bounds, "dsc": dsc, "patient": [*patients]}).dropna()
    holds = (table["dsc"] >= table["bound"]).groupby(table["patient"]).all()
    k, n = int(holds.sum()), len(holds)
    low, high = stats.binomtest(k, n).proportion_ci() if n else (np.nan, np.nan)
    return k, n, float(low), float(high)


def quality_section(context: Context) -> Section | None:
    """Return how well estimates of one network order the scans, and whether the bounds of
    validation cases hold.
    """
    results, name = context.results, context.reference
    if len(results.names) > 1 or not results.has("aurc"):
        return None
    known = reference_of(context.validation or results.evaluations[name])
    dsc = results.values(name, "dsc")
    records: list[dict[str, Any]] = []
    for title, values in _estimates(results, name, known).items():
        records += _rank(results, (title, MEAN), values, dsc)
    for structure in results.structures:
        expected, true = (results.values(name, f"{each}_{structure}") for each in DSC)
        records += _rank(results, ("expected DSC", structure), expected, true)
    caption = ABOUT.format(bad=(dsc < BAD).sum(), scans=len(dsc))
    if records[0]["low"] <= 0:
        caption += NOT_SHOWN
    if context.validation is not None:
        held = _bounds_that_hold(results, name, known)
        caption += ABOUT_BOUNDS.format(held=held or "no bound", note=known.note)
    table = tabulate(records, ["score", "structure"])
    return Section("quality", "Does the expected DSC find the bad scans?", caption, table, records)


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


def _rank(
    results: Results, place: tuple[str, str], estimates: ArrayLike, dsc: Array
) -> list[dict[str, Any]]:
    """Return the records of a score of a structure."""
    score, structure = place
    ranking = rank_scans(estimates, dsc, results.patients)
    return [
        results.record(results.names[0], title, estimate, score=score, structure=structure)
        for title, estimate in zip(TITLES, ranking, strict=True)
    ]


def _bounds_that_hold(results: Results, name: str, known: Reference) -> str:
    """Return for how many patients the lower bound of each structure holds, as text."""
    held = []
    for structure in results.structures:
        expected, true = (results.values(name, f"{each}_{structure}") for each in DSC)
        bounds = [known.lower_bound(structure, value) for value in expected]
        k, n, low, high = coverage(bounds, true, results.patients)
        if n > 0:
            held.append(f"{structure} {k} of {n} [{low:.2f}, {high:.2f}]")
    return ", ".join(held)
