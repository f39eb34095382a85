"""Whether estimates of quality find the bad segmentations, where the truth is known."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from calib_components.handlers.evaluation_files import Evaluation
from calib_components.quality import ESTIMATES, Reference, mean_estimate
from calib_components.tools.report.data import WITHOUT, Results
from calib_components.tools.report.page import Section
from calib_components.tools.report.statistics import FEWEST_PATIENTS, SEED, Array, Estimate
from calib_components.tools.report.structures import MEAN, confidence_and_accuracy
from calib_components.tools.report.tables import tabulate

BAD, SHARE = 0.7, 0.2  # DSC below which a segmentation is bad; share of the scans that are reviewed
RESAMPLES = 1000
TITLES = ("gap closed ↑", "ROC ↑", "found in 20 % ↑", "Spearman ↑")  # of the values of a `Ranking`
ABOUT = (
    "Whether the probabilities alone order the scans as their DSC does. Gap closed: 1 for the order"
    " of the DSC, 0 for a random one. ROC: area under the ROC curve for a DSC below 0.7. Found:"
    " share of these scans among the 20 % with the lowest estimates. Estimates of a scan are means"
    " over structures; a structure that should be there and is not predicted counts as 0. Intervals"
    " are over patients. "
)
TOO_FEW = "There are too few patients for intervals. "
NOT_SHOWN = (
    "The expected DSC is not shown to order these scans: the interval of the gap closed holds 0. "
)


def reference_of(evaluation: Evaluation, patient_pattern: str | None = None) -> Reference:
    """Return the reference that an evaluation of validation cases is, of probabilities, for scans
    of the same model.
    """
    names, patients = (
        evaluation.structures,
        [item["patient"] for item in evaluation.items(patient_pattern)],
    )
    measures = ("expected_dsc", "dsc", "expected_volume", "true_volume")
    values = [evaluation.cases[[f"{measure}_{name}" for name in names]] for measure in measures]
    return Reference.from_scans(names, patients, np.stack(values, -1))


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
    pair, (names, index) = (
        pair[:, defined],
        np.unique(np.asarray(patients)[defined], return_inverse=True),
    )
    scans = [np.flatnonzero(index == patient) for patient in range(len(names))]

    ends = np.full((2, len(Ranking._fields)), np.nan)
    if len(names) >= FEWEST_PATIENTS:
        draws = np.random.default_rng(SEED).integers(len(names), size=(RESAMPLES, len(names)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # in some draws, no scan is below 0.7
            found = [order(*pair[:, np.concatenate([scans[i] for i in row])]) for row in draws]
            ends = np.nanquantile(found, [0.025, 0.975], axis=0)
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
    bounds, dsc = np.asarray(bounds, float), np.asarray(dsc, float)
    defined = ~np.isnan(bounds + dsc)
    names, index = np.unique(np.asarray(patients)[defined], return_inverse=True)
    failed = np.bincount(index, (dsc < bounds)[defined], minlength=len(names)) > 0
    k, n = int((~failed).sum()), len(names)
    low, high = stats.binomtest(k, n).proportion_ci() if n else (np.nan, np.nan)
    return k, n, float(low), float(high)


def quality_section(results: Results, validation: Path | None) -> Section:
    """Return how well estimates of one network order the scans, and whether the bounds of
    validation cases hold.
    """
    (tested,), (row, *_) = results.evaluations.values(), results.rows(temperatures=[WITHOUT])
    known, patients = (
        reference_of(tested if validation is None else Evaluation.read(validation)),
        results.patients(),
    )
    expected, true = (
        {name: results.of_cases(row, f"{measure}_{name}") for name in tested.structures}
        for measure in ("expected_dsc", "dsc")
    )
    confidence = {
        name: confidence_and_accuracy(results, row, name)[0] for name in tested.structures
    }
    estimates: dict[str, Mapping[str, Array]] = {}
    for estimate in ESTIMATES:
        columns = {name: f"{estimate.name}_{name}" for name in tested.structures}
        if not estimate.better or not results.has(*columns.values()):
            continue
        scores = {name: results.of_cases(row, column) for name, column in columns.items()}
        if estimate.better == "higher":
            estimates[estimate.title] = scores
        else:
            estimates[f"1 - {estimate.title}"] = {name: 1 - v for name, v in scores.items()}
    estimates["mean confidence"] = confidence
    dsc, rows = results.of_cases(row, "dsc"), list[tuple[str, str, ArrayLike, Array]]()
    for title, values in estimates.items():
        scans = (
            dict(zip(values, scan, strict=True)) for scan in zip(*values.values(), strict=True)
        )
        rows.append((title, MEAN, [mean_estimate(scan, known.always) for scan in scans], dsc))
    rows += [("expected DSC", name, expected[name], true[name]) for name in tested.structures]
    records: list[dict[str, Any]] = []
    for score, name, own, truth in rows:
        ranking, keys = (
            rank_scans(own, truth, patients),
            {"score": score, "structure": name, "unit": "dsc"},
        )
        found = zip(TITLES, ranking, strict=True)
        records += [
            results.record(row, column, estimate, **keys, column=column)
            for column, estimate in found
        ]
    caption = f"{ABOUT}{(dsc < BAD).sum()} of {len(dsc)} scans have a DSC below {BAD}. "
    has_interval = records[0]["low"] is not None and not np.isnan(records[0]["low"])
    caption += NOT_SHOWN * (not records[0]["low"] > 0) if has_interval else TOO_FEW
    if validation is not None:
        held = []
        for name in tested.structures:
            bounds = [known.lower_bound(name, value) for value in expected[name]]
            k, n, low, high = coverage(bounds, true[name], patients)
            held += [f"{name} {k} of {n} [{low:.2f}, {high:.2f}]"] * (n > 0)
        text = "Patients for whom the lower bound of the DSC, at 90 %, holds in every scan: {}. {}"
        caption += text.format(", ".join(held) or "no bound", known.note)
    table = tabulate(records, ["score", "structure"])
    return Section("quality", "Does the expected DSC find the bad scans?", caption, table, records)
