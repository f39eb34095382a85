"""Sections of evaluations side by side: means, paired differences and reliability diagrams."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from calib_components.metrics.case import report_columns
from calib_components.quality.shift import holm
from calib_tools.report.data import Context, Results
from calib_workflows.figures import reliability_diagram
from calib_workflows.pages.numbers import Record, heading, is_significant, to_cell
from calib_workflows.pages.page import Picture, Section, to_png

# What evaluations are compared by. The NLL of all voxels decides, that near the structures, where
# background does not hide a difference, explains: these voxels are the same for all networks.
COMPARED = (
    "dsc",
    "hd95",
    "nll_all",
    "nll_near",
    "nll_predicted",
    "ece_predicted",
    "ece_all",
    "ece",
    "cece",
)
# What decides, by what it is called in sentences: the first that the evaluations have
DECIDING = {"nll_all": "NLL over all voxels", "dsc": "DSC"}
# Of DSC: a network that loses more is not called better, whether the loss is significant or not
LOSS = 0.05
DIFFERENCE = "{name} minus {reference}"
BETTER = "{name} is better than {reference}: {measure} {value}."
WORSE = "{name} is worse than {reference}: {measure} {value}."
NOT_SHOWN = "{name} and {reference}: no difference in {measure} is shown, {value}."
OPPOSED = (
    "{name} and {reference}: neither is called better. {measure}: {value}, where lower is better;"
    " DSC: {dsc}, where higher is."
)
UNKNOWN = (
    "{name} and {reference}: which is better is unknown, as intervals need six patients. {measure}:"
    " {value}."
)
EXPLAINING = " Other measures explain, and do not decide: {measures}."
ABOUT_MEANS = "{patients}. Means over cases, with 95 % intervals. "
ABOUT_REGIONS = (
    "The prediction chooses the voxels of the regions all and predicted: true probabilities have an"
    " ECE of 0 there, up to chance. The ground truth chooses the foreground: true probabilities"
    ' have the error "if true" there, and a lower one does not mean better calibration. To compare'
    " networks, take the NLL of all voxels, which decides, and of those near a true structure (5"
    " mm, or voxels where the spacing is unknown), which explains. "
)
ABOUT_INTERVALS = "Intervals and tests are over patients: about these trained networks. "
ABOUT_COUNTS = (
    "Missed structures are in the ground truth alone, spurious ones in the prediction alone."
)
ABOUT_DIFFERENCES = (
    "Mean difference on the same cases, its 95 % interval (not corrected), and its p-value,"
    " Holm-corrected over columns. Bold: p < 0.05 and 0 not in the interval. HD95 leaves out cases"
    " with a missed or spurious structure. The DSC is 1 where there is nothing to find and nothing"
    " is found. "
)
ABOUT_DIAGRAMS = (
    "Accuracy over confidence, where a structure is predicted: bars of a calibrated network end at"
    " the diagonal, up to chance. Voxels of all cases together. Other regions are in"
    " reliability.png in the folder of an evaluation."
)


def means_section(context: Context) -> Section | None:
    """Return the mean of every measure with its interval."""
    results = context.results
    text = ABOUT_MEANS.format(patients=results.count)
    if results.has("ece_all"):
        text += ABOUT_REGIONS
    text += ABOUT_INTERVALS + ABOUT_COUNTS
    return Section("means", "Means", text, tabulate_means(results), ["measure"], "label")


def tabulate_means(results: Results) -> pd.DataFrame:
    """Return the mean of each measure with its interval, and what an error would be if the
    probabilities were true; and the numbers of missed and spurious structures.
    """
    rows = []
    measures = [measure for measure in report_columns() if results.has(measure)]
    for measure, name in itertools.product(measures, results.names):
        row = results.record(name, measure)
        if results.has(f"{measure}_if_true"):
            row["if_true"] = results.cases[name][f"{measure}_if_true"].mean()
        rows.append(row)
    for name, cases in results.cases.items():
        missed, spurious = cases[["missed", "spurious"]].sum().round(1)
        text = f"{missed:g} / {spurious:g}"
        rows.append({**results.keys(name), "measure": "missed / spurious", "text": text})
    return pd.DataFrame(rows)


def compare(results: Results, reference: str) -> pd.DataFrame:
    """Return the differences of the other evaluations to the reference."""
    pairs = [(name, reference) for name in results.names if name != reference]
    return differences(results, pairs, [each for each in COMPARED if results.has(each)])


def differences(
    results: Results, pairs: Sequence[tuple[str, str]], measures: Sequence[str]
) -> pd.DataFrame:
    """Return paired differences of evaluations to references, with p-values of a measure that are
    Holm-corrected over the pairs.
    """
    if not pairs:
        return pd.DataFrame()
    rows = []
    for (name, reference), measure in itertools.product(pairs, measures):
        label = DIFFERENCE.format(name=results.labels[name], reference=results.labels[reference])
        keys = {**results.keys(name), "reference": reference, "label": label, "measure": measure}
        rows.append({**keys, **results.difference(name, reference, measure)._asdict()})
    table = pd.DataFrame(rows)
    return table.assign(p_value_holm=table.groupby("measure")["p_value"].transform(holm))


def describe_differences(results: Results, table: pd.DataFrame, reference: str) -> list[str]:
    """Return of each evaluation whether it is better than a reference, from a table of `compare`.

    The NLL over all voxels decides; of label maps, the DSC does. A network that loses DSC is not
    called better for its probabilities.
    """
    sentences = []
    for name in results.names:
        pair = {"name": results.labels[name], "reference": results.labels[reference]}
        rows = table[table["label"] == DIFFERENCE.format(**pair)].set_index("measure", drop=False)
        if name != reference:
            sentences.append(_describe_pair(rows, pair))
    return sentences


def _describe_pair(rows: pd.DataFrame, pair: Mapping[str, str]) -> str:
    """Return which of two evaluations is better, and what differs besides.

    Args:
        rows: Their differences, by measure.
        pair: What the two are called.
    """
    values = rows.apply(_value, axis=1)
    changes = rows.apply(is_significant, axis=1) * np.sign(rows["mean"])
    decisive = next(measure for measure in DECIDING if measure in rows.index)
    template = _judge_pair(rows, changes, decisive)
    sentence = template.format(
        **pair, measure=DECIDING[decisive], value=values[decisive], dsc=values["dsc"]
    )
    named = {decisive, "dsc"} if template is OPPOSED else {decisive}
    others = [
        f"{heading(measure, arrow=False)} {'higher' if change > 0 else 'lower'}"
        for measure, change in changes.drop([*named]).items()
        if change
    ]
    return sentence + EXPLAINING.format(measures=", ".join(others)) if others else sentence


def _judge_pair(rows: pd.DataFrame, changes: pd.Series, decisive: str) -> str:
    """Return the sentence to say, from the signs of significant differences, 0 of others."""
    change, dsc = changes[decisive], rows["mean"]["dsc"]
    if math.isnan(rows["low"][decisive]):
        return UNKNOWN
    if not change:
        return NOT_SHOWN
    if decisive == "dsc":
        return BETTER if change > 0 else WORSE
    # The one with the lower NLL has the lower DSC
    if change * dsc > 0 and (abs(dsc) > LOSS or changes["dsc"]):
        return OPPOSED
    return BETTER if change < 0 else WORSE


def _value(record: Record) -> str:
    text, notes, *_ = to_cell({**record, "signed": True})
    return ", ".join([" ".join([text, *notes[:1]]), *notes[1:]])


def differences_section(context: Context) -> Section | None:
    """Return the differences to the first evaluation."""
    table = compare(context.results, context.results.names[0])
    return tabulate_differences(table, ABOUT_DIFFERENCES + ABOUT_INTERVALS, folded=False)


def tabulate_differences(table: pd.DataFrame, text: str, folded: bool = True) -> Section | None:
    """Return a table of `differences` as a section; None if there are none."""
    if table.empty:
        return None
    table = table.assign(signed=True)
    return Section("differences", "Differences", text, table, ["measure"], "label", folded=folded)


def reliability_section(context: Context) -> Section | None:
    """Return a reliability diagram of each evaluation, where it predicts a structure."""
    results = context.results
    if not results.has("ece_predicted"):
        return None
    pictures = []
    for name, label in results.labels.items():
        bins = results.bins[name]["predicted"].pooled()
        if bins.count.any():  # something is predicted
            png = to_png(reliability_diagram({"predicted foreground": bins}))
            pictures.append(Picture(f"reliability_{name}", label, png))
    if not pictures:
        return None
    return Section("reliability", "Reliability", ABOUT_DIAGRAMS, pictures=pictures, folded=False)
