"""The section of objects, such as lesions: what is found, how many candidates are false, and
whether their confidence is calibrated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calib_components.errors import InputError
from calib_components.metrics.objects import TRUE_OBJECT
from calib_tools.report.data import Context
from calib_tools.report.statistics import Array, Estimate, mean_with_interval
from calib_workflows.evaluation_files import MISSED, Evaluation
from calib_workflows.figures.style import NAME, literal
from calib_workflows.pages.page import Picture, Section, to_png

GOALS = r"f1|false=\d+\.?\d*|recall=(0?\.\d+|1(\.0*)?)"
PICTURES = [f"missed{number}.png" for number in range(1, MISSED + 1)]
VOLUMES = [0, *np.logspace(-3, 9, 13)]
CONFIDENCES = np.linspace(0, 1, 11)
RIGHT = "right, confidence in {}"
ABOUT = (
    "A candidate is a connected region of probabilities of at least {threshold}; its confidence p"
    " is the largest one. It is right if it shares a voxel with a true object, and their IoU is at"
    " least {overlap}; then that object is found, once. Right: the share of right candidates. If"
    " they are calibrated, it is their confidence. Volumes are in {unit}. Intervals are over"
    " patients. {chosen}"
)
CHOSEN = (
    "The second p is the best for {goal} on the validation cases, where it looks better than it is;"
    " it is the lowest one if none reaches this, and missing without a candidate."
)


def objects_section(context: Context) -> Section | None:
    """Return how many objects of one evaluation are found, and whether the confidence of candidates
    is calibrated; with validation cases, also from the confidence on that is the best there.
    """
    results = context.results
    tested, chosen = results.evaluations[context.reference], ""
    if len(results.names) > 1 or "objects" not in tested.parts:
        return None
    options = tested.summary["objects"]
    records = [
        {"label": label, "measure": measure, "signed": "minus" in measure, **estimate._asdict()}
        for structure in options["structures"]
        for label, found in _lines(context, structure).items()
        for measure, estimate in found.items()
        if "confidence" not in measure or tested.regions  # label maps have none
    ]
    if _with_objects(context.validation):
        chosen = CHOSEN.format(goal=context.object_threshold)
    return Section(
        "objects",
        "Which objects are found?",
        ABOUT.format(**options, unit=results.volume_unit, chosen=chosen),
        records,
        ["measure"],
        "label",
        _pictures(tested, results.folders[context.reference] / "cases"),
        folded=False,
    )


def _with_objects(evaluation: Evaluation | None) -> Evaluation | None:
    """Return an evaluation if it has objects."""
    return evaluation if evaluation is not None and "objects" in evaluation.parts else None


def _lines(context: Context, structure: str) -> dict[str, dict[str, Estimate]]:
    """Return what was measured of a structure: at the threshold of candidates, and, of both cases,
    from the confidence on that the validation cases choose.
    """
    tested = context.results.evaluations[context.reference]
    here = select(tested, structure)
    lines = [("test", here, tested.summary["objects"]["threshold"])]
    if fitted := _with_objects(context.validation):
        there = select(fitted, structure)
        best = choose(froc(*there), context.object_threshold)
        if np.isfinite(best):
            lines += [("validation", there, best), ("test", here, best)]
    return {
        f"{structure}, {cases}, p ≥ {threshold:.6g}": measure_objects(*selected, threshold)
        for cases, selected, threshold in lines
    }


def _pictures(tested: Evaluation, folder: Path) -> list[Picture]:
    """Return the curves, of probabilities, and the largest misses."""
    files = [folder / name for name in PICTURES]
    missed = [Picture(file.stem, "", file.read_bytes()) for file in files if file.exists()]
    if not tested.regions:
        return missed
    title = "FROC, and how often candidates are right"
    return [Picture("froc", title, to_png(_draw_curves(tested))), *missed]


def _draw_curves(tested: Evaluation) -> Figure:
    """Draw FROC, and the reliability of candidates, of each structure."""
    options, figure = tested.summary["objects"], Figure((8, 4), layout="constrained")
    curve, reliability = figure.subplots(1, 2)
    for structure in options["structures"]:
        here = select(tested, structure)
        _, recall, false, _ = froc(*here)
        curve.plot(false, recall, ".-", label=literal(structure, NAME))
        _draw_reliability(reliability, measure_objects(*here, options["threshold"]))
    curve.set(xlabel="False candidates a scan", ylabel="Recall", ylim=(0, 1))
    curve.legend()
    return figure


def _draw_reliability(axes: Axes, found: Mapping[str, Estimate]) -> None:
    """Draw the share of right candidates over their confidence, with intervals over patients."""
    axes.plot([0, 1], [0, 1], "--", color="black")
    middles = (CONFIDENCES[1:] + CONFIDENCES[:-1]) / 2
    keys = [RIGHT.format(interval) for interval in pd.IntervalIndex.from_breaks(CONFIDENCES)]
    shares = [found.get(key, Estimate(np.nan)) for key in keys]
    ends = np.array([(share.low, share.mean, share.high) for share in shares]).T
    axes.errorbar(middles, ends[1], np.abs(ends[::2] - ends[1]), fmt="o-")
    axes.set(xlabel="Confidence of candidates", ylabel="Share that is right", ylim=(0, 1))


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


def measure_objects(
    rows: pd.DataFrame, patients: pd.Series, threshold: float
) -> dict[str, Estimate]:
    """Return what candidates of at least some confidence find, with intervals over patients."""
    kept, is_true = rows["confidence"] >= threshold, rows["kind"] == TRUE_OBJECT
    recall, right = kept[is_true], rows["matched"][kept & ~is_true]
    false = right[~right]
    of_cases = rows["case"][false.index].value_counts().reindex(patients.index, fill_value=0)
    values = {
        "recall": recall,
        "F1": pd.concat([recall, recall[recall], false]),  # an object that is found counts twice
        "right": right,
        "confidence minus right": rows["confidence"][right.index] - right,
    }
    for title, part, column, edges in (
        ("recall, volume in {}", recall, "volume", VOLUMES),
        (RIGHT, right, "confidence", CONFIDENCES),
    ):
        for place, group in part.groupby(pd.cut(rows[column], edges), observed=True):
            values[title.format(place)] = group
    estimates = {"false candidates a scan": mean_with_interval(of_cases, patients)}
    for measure, each in values.items():
        estimates[measure] = mean_with_interval(each, rows["patient"][each.index])
    return estimates
