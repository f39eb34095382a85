"""Sections of evaluations side by side: means, paired differences and reliability diagrams."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pandas as pd

from calib_components.metrics.case import report_columns
from calib_tools.report.data import Context, Results
from calib_tools.report.statistics import holm
from calib_workflows.figures import reliability_diagram
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
        label = f"{results.labels[name]} minus {results.labels[reference]}"
        keys = {**results.keys(name), "reference": reference, "label": label, "measure": measure}
        rows.append({**keys, **results.difference(name, reference, measure)._asdict()})
    table = pd.DataFrame(rows)
    return table.assign(p_value_holm=table.groupby("measure")["p_value"].transform(holm))


def differences_section(context: Context) -> Section | None:
    """Return the differences to the first evaluation."""
    table = compare(context.results, context.results.names[0])
    return tabulate_differences(table, ABOUT_DIFFERENCES + ABOUT_INTERVALS)


def tabulate_differences(table: pd.DataFrame, text: str) -> Section | None:
    """Return a table of `differences` as a section; None if there are none."""
    if table.empty:
        return None
    table = table.assign(signed=True)
    return Section("differences", "Differences", text, table, ["measure"], "label")


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
