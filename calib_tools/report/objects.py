"""The section of objects, such as lesions: what is found, how many candidates are false, and
whether their confidence is calibrated.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from calib_components.errors import InputError
from calib_components.metrics.intervals import Estimate, interval
from calib_components.metrics.objects import TRUE_OBJECT
from calib_tools.report.data import Context, Results, count_of
from calib_tools.report.statistics import Array
from calib_workflows.evaluation_files import MISSED, Evaluation
from calib_workflows.figures.style import NAME, literal
from calib_workflows.pages.page import Picture, Section, to_png

GOALS = r"f1|false=\d+\.?\d*|recall=(0?\.\d+|1(\.0*)?)"
PICTURES = [f"missed{number}" for number in range(1, MISSED + 1)]
VOLUMES = [0, *np.logspace(-3, 9, 13)]
CONFIDENCES = np.linspace(0, 1, 11)
ABOUT = (
    "A candidate is a connected region of probabilities of at least {threshold}; a voxel is"
    " connected to its 26 neighbours, 8 in 2D. Its confidence p is the largest one. It is right if"
    " it shares a voxel with a true object{iou}; then that object is found, once. Right: the share"
    " of right candidates. If they are calibrated, it is their confidence. Volumes are in {unit}."
    " Intervals are over patients. {chosen}"
)
IOU = ", and their IoU is at least {}"
FOUND = "{found} of {true} found, {false} in {scans}."
# Measures of intervals, in the order of the page, after the others
IN_INTERVALS = [
    f"{measure} in {interval}"
    for measure, ends in (("recall, volume", VOLUMES), ("right, confidence", CONFIDENCES))
    for interval in pd.cut(ends[:1], ends).categories
]
CHOSEN = (
    "The second p is the best for {goal} on the validation cases, where it looks better than it is;"
    " it is the lowest one if none reaches this, and missing without a candidate."
)


def describe_objects(results: Results) -> list[str]:
    """Return how many objects are found, and how many candidates are false, of each structure;
    nothing without objects.
    """
    if results.part("objects") is None:
        return []
    (tested,) = results.evaluations.values()
    options, sentences = tested.summary["objects"], []
    for structure in options["structures"]:
        rows, patients = select(tested, structure)
        true, candidates = observe(rows, options["threshold"])
        counts = {
            "found": true["value"].sum(),
            "true": count_of(len(true), structure),
            "false": count_of((~candidates["value"]).sum(), "false candidate"),
            "scans": count_of(len(patients), "scan"),
        }
        sentences.append(FOUND.format(**counts))
    return sentences


def objects_section(context: Context) -> Section | None:
    """Return how many objects of one evaluation are found, and whether the confidence of candidates
    is calibrated; with validation cases, also from the confidence on that is the best there.
    """
    results = context.results
    if results.part("objects") is None:
        return None
    (tested,) = results.evaluations.values()
    options, chosen, tables = tested.summary["objects"], "", {}
    for structure in options["structures"]:
        here = select(tested, structure)
        lines = [("test", here, options["threshold"])]
        if context.validation is not None:
            there = select(context.validation, structure)
            best = choose(froc(*there), context.object_threshold)
            chosen = CHOSEN.format(goal=context.object_threshold)
            if np.isfinite(best):
                lines += [("validation", there, best), ("test", here, best)]
        for cases, selected, threshold in lines:
            label = f"{structure}, {cases}, p ≥ {threshold:.6g}"
            tables[label] = measure_objects(*selected, threshold)
    table = pd.concat(tables, names=["label", "measure"]).reset_index()
    places = {measure: place for place, measure in enumerate(IN_INTERVALS, 1)}
    order = table["measure"].map(places).fillna(0)
    table = table.loc[order.sort_values(kind="stable").index]
    if not tested.regions:  # candidates of label maps have no confidence
        table = table[~table["measure"].str.contains("confidence")]
    table["signed"] = table["measure"].str.contains("minus")
    iou = IOU.format(options["overlap"]) if options["overlap"] else ""
    pictures = results.pictures(results.names[0], *PICTURES)
    if tested.regions:
        title = "FROC, and how often candidates are right"
        pictures.insert(0, Picture("froc", title, to_png(_draw_curves(tested))))
    return Section(
        "objects",
        "Which objects are found?",
        ABOUT.format(
            threshold=options["threshold"], iou=iou, unit=results.volume_unit, chosen=chosen
        ),
        table,
        ["measure"],
        "label",
        pictures,
        folded=False,
    )


def _draw_curves(tested: Evaluation) -> Figure:
    """Draw FROC, and the share of right candidates over their confidence, of each structure."""
    options, figure = tested.summary["objects"], Figure((8, 4), layout="constrained")
    curve, reliability = figure.subplots(1, 2)
    reliability.plot([0, 1], [0, 1], "--", color="black")
    for structure in options["structures"]:
        rows, patients = select(tested, structure)
        _, recall, false, _ = froc(rows, patients)
        curve.plot(false, recall, ".-", label=literal(structure, NAME))
        _, candidates = observe(rows, options["threshold"])
        groups = in_intervals(candidates, "confidence", CONFIDENCES)
        middles = [interval.mid for interval in groups]
        shares = pd.DataFrame(map(mean_of, groups.values()), middles, Estimate._fields)
        ends = shares["mean"] - shares["low"], shares["high"] - shares["mean"]
        reliability.errorbar(shares.index, shares["mean"], ends, fmt="o-")
    curve.set(xlabel="False candidates a scan", ylabel="Recall", ylim=(0, 1))
    curve.legend()
    reliability.set(xlabel="Confidence of candidates", ylabel="Share that is right", ylim=(0, 1))
    return figure


def select(evaluation: Evaluation, structure: str) -> tuple[pd.DataFrame, pd.Series]:
    """Return the rows of a structure in `objects.csv`, and the patient of each case."""
    table = evaluation.parts["objects"]
    return table[table["structure"] == structure], pd.Series(evaluation.summary["patients"])


def froc(rows: pd.DataFrame, patients: pd.Series) -> Array:
    """Return confidences, from the highest on, and recall, false candidates a scan and F1 of the
    candidates of at least this confidence. The first one is infinite: no candidate.

    Args:
        rows: Candidates and true objects.
        patients: Patient of each case, also of those without any.
    """
    confidence, is_true = rows["confidence"], rows["kind"] == TRUE_OBJECT
    threshold = np.unique([*confidence[~is_true], np.inf])[::-1]
    found, false = (
        mask.sum() - np.searchsorted(np.sort(confidence[mask]), threshold)
        for mask in (is_true, ~(is_true | rows["matched"]))
    )
    true = max(is_true.sum(), 1)
    return np.array(
        [threshold, found / true, false / len(patients), 2 * found / (found + true + false)]
    )


def choose(curve: Array, goal: str) -> float:
    """Return the threshold of `froc` with the highest F1, the lowest one with at most some false
    candidates, or the highest one with some recall, or the most.
    """
    if not re.fullmatch(GOALS, goal):
        raise InputError(
            f"--object_threshold: {goal!r} is not f1, false=K or recall=R, such as recall=0.9."
        )
    threshold, recall, false, f1 = curve
    kind, _, value = goal.partition("=")
    if kind == "f1":
        return threshold[f1.argmax()]
    if kind == "false":
        return threshold[false <= float(value)][-1]
    return threshold[recall >= min(float(value), recall[-1])][0]


def observe(rows: pd.DataFrame, threshold: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the true objects, and the candidates of at least some confidence; their `value` is
    whether they are found, or right.
    """
    is_true, is_kept = rows["kind"] == TRUE_OBJECT, rows["confidence"] >= threshold
    true = rows[is_true].assign(value=is_kept)
    candidates = rows[~is_true & is_kept]
    return true, candidates.assign(value=candidates["matched"])


def in_intervals(
    observed: pd.DataFrame, column: str, ends: ArrayLike
) -> dict[pd.Interval, pd.DataFrame]:
    """Return the objects or candidates in each interval of a column that has some."""
    return dict(iter(observed.groupby(pd.cut(observed[column], ends), observed=True)))


def mean_of(observed: pd.DataFrame) -> Estimate:
    """Return the mean value with its interval over patients."""
    return interval(observed["value"], observed["patient"])


def measure_objects(rows: pd.DataFrame, patients: pd.Series, threshold: float) -> pd.DataFrame:
    """Return what candidates of at least some confidence find, an estimate for each measure."""
    true, candidates = observe(rows, threshold)
    found, false = true[true["value"]], candidates[~candidates["value"]]
    scans = false["case"].value_counts().reindex(patients.index, fill_value=0)
    measures = {
        "false candidates a scan": pd.DataFrame({"value": scans, "patient": patients}),
        "recall": true,
        "F1": pd.concat([true, found, false]),  # an object that is found counts twice
        "right": candidates,
        "confidence minus right": candidates.assign(
            value=candidates["confidence"] - candidates["value"]
        ),
    }
    for part, group in in_intervals(true, "volume", VOLUMES).items():
        measures[f"recall, volume in {part}"] = group
    for part, group in in_intervals(candidates, "confidence", CONFIDENCES).items():
        measures[f"right, confidence in {part}"] = group
    found = pd.DataFrame(map(mean_of, measures.values()), [*measures])
    counts = {name: f"{group['value'].sum()} of {len(group)}" for name, group in measures.items()}
    counts["false candidates a scan"] = f"{len(false)} in {count_of(len(patients), 'scan')}"
    is_share = found.index.str.match("recall|right|false")
    return found.assign(note=pd.Series(counts).where(is_share))
