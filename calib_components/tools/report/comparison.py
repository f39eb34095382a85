"""Sections of methods side by side: means, paired differences, diagrams, logits, and what was run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from calib_components.figures import reliability_diagram
from calib_components.tools.report.data import WITH, WITHOUT, Results, Row
from calib_components.tools.report.figures import mean_intervals
from calib_components.tools.report.page import Picture, Section, to_png
from calib_components.tools.report.statistics import (
    FEWEST_PATIENTS,
    Estimate,
    holm,
    mean_of_defined,
    mean_with_interval,
    paired_difference,
)
from calib_components.tools.report.tables import (
    DECIDING,
    LOSS,
    Cell,
    Record,
    heading,
    number,
    tabulate,
)

ABOUT_REGIONS = (
    "The prediction chooses the voxels of the regions all, predicted and plausible (p of a"
    " structure above .05): true probabilities have an ECE of 0 there, up to chance. The ground"
    ' truth chooses the foreground: true probabilities have the error "if true" there, and a lower'
    " one does not mean better calibration. The NLL of all voxels is mostly that of easy"
    " background, and depends on how much of it there is: read it with that of the predicted"
    " foreground. "
)
ABOUT_TEMPERATURE = (
    "+ T: logits are divided by a temperature T that was fitted on the validation split. T > 1: the"
    " network was overconfident there. The segmentation stays the same. "
)
ABOUT_FOLDS = (
    "Folds share one T, fitted on cases that other folds test: results with T are slightly"
    " optimistic. "
)
ABOUT_INTERVALS = (
    "With several seeds, intervals and tests are over seeds and patients (Student's t). With one"
    " seed, they are over patients alone: about these trained networks, not about another"
    " training. "
)
ABOUT_DIFFERENCES = (
    "Mean difference on the same cases, its 95 % interval (not corrected), and its p-value,"
    " Holm-corrected over lines with the same temperatures, and over NLL predicted, ECE predicted"
    " and ECE all together. Bold: p < 0.05 and 0 not in the interval. HD95 leaves out cases with a"
    " missed or spurious structure. The DSC is 1 where there is nothing to find and nothing is"
    " found. "
)
FOUND_IN_ONE = ("missed", "spurious")
DIAGRAMS = {"all": "All voxels", "predicted": "Predicted foreground"}


def row_of(record: Record) -> Row:
    """Return the row that a record is of."""
    return Row(*(record[name] for name in Row._fields))


def mean_records(
    results: Results, rows: Sequence[Row], measures: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the mean of each measure and row with its interval and its spread over seeds and over
    patients.
    """
    records = []
    for measure, row in itertools.product(measures, rows):
        values, patients = results.values(row, measure), results.patients(row.test_set)
        record = results.record(row, measure, mean_with_interval(values, patients))
        del record["p_value"]
        record["seeds"] = results.seeds(row)
        record["sd_seeds"] = float(pd.Series(mean_of_defined(values, axis=1)).std())
        record["sd_patients"] = float(
            pd.Series(mean_of_defined(values)).groupby(patients.to_numpy()).mean().std()
        )
        if (row, measure) in results.about.get("published", {}):
            record["published"] = results.about["published"][row, measure]
        if results.has(f"{measure}_if_true"):
            record["if_true"] = float(mean_of_defined(results.of_cases(row, f"{measure}_if_true")))
        records.append(record)
    return records


def label_with_temperature(results: Results, row: Row) -> str:
    """Return the label of a row and its temperature, or the range of those of several seeds."""
    if row.temperature == WITHOUT or results.temperatures.empty:
        return results.label(row)
    fits = results.temperatures
    found = fits["temperature"][fits["method"] == row.method]
    ends = dict.fromkeys(f"{end:.2f}" for end in (found.min(), found.max()))
    return f"{results.label(row)} ({' to '.join(ends)})"


def means_section(results: Results, measures: Sequence[str], test_set: str = "") -> Section:
    """Return the mean of every measure with its interval, without and with temperature."""
    rows, name = results.rows(test_set), "means" + f"_on_{test_set}" * bool(test_set)
    measures = [measure for measure in measures if results.has(measure)]
    records, shown = mean_records(results, rows, measures), []
    dsc = {row: float(mean_of_defined(results.of_cases(row, "dsc"))) for row in rows}
    for record in records:
        row = row_of(record)
        # What it has best is no merit
        behind = record["measure"] != "dsc" and dsc[row] < max(dsc.values()) - LOSS
        shown.append(record | {"label": label_with_temperature(results, row), "unmarked": behind})
    table = tabulate(shown, ["label"], marked=True)
    counts = [
        [float(np.nansum(results.values(row, kind), axis=1).mean()) for kind in FOUND_IN_ONE]
        for row in rows
    ]
    table["missed / spurious"] = [
        Cell(" / ".join(f"{round(count, 1):g}" for count in pair)) for pair in counts
    ]
    pictures = []
    if len(rows) > 1 and results.patients(test_set).nunique() >= FEWEST_PATIENTS:
        panels = {
            heading(measure): [
                [r["mean"], r["low"], r["high"]] for r in records if r["measure"] == measure
            ]
            for measure in ("dsc", "nll_all", *DECIDING)
            if measure in measures
        }
        figure = mean_intervals(
            panels, [results.label(row) for row in rows], [row.temperature == WITH for row in rows]
        )
        pictures = [
            Picture(name, "Means with 95 % intervals; hollow: with temperature", to_png(figure))
        ]
    caption = f"{results.count(test_set)}. Mean over cases, below it its 95 % interval. "
    if len(rows) > 1:
        caption += f"The best is bold, where the DSC is at most {LOSS} below the best. "
    if not test_set:
        if any(row.temperature == WITH for row in rows):
            caption += ABOUT_TEMPERATURE + ABOUT_FOLDS * bool(results.about.get("folds"))
        caption += ABOUT_REGIONS * results.has("ece_all") + ABOUT_INTERVALS
        caption += (
            "Missed structures are in the ground truth alone, spurious ones in the prediction"
            " alone."
        )
    return Section(
        name, f"Means on {test_set}" if test_set else "Means", caption, table, records, pictures
    )


def differences(
    results: Results, pairs: Sequence[tuple[Row, Row]], measures: Sequence[str]
) -> pd.DataFrame:
    """Return paired differences of rows to reference rows on the same cases, with Holm-corrected
    p-values.

    P-values of a measure are corrected over the pairs with the same temperatures, those of two
    methods apart from those of a method and itself with a temperature; those of `DECIDING` over
    these measures, too.
    """
    records = []
    for (row, base), measure in itertools.product(pairs, measures):
        if row.method == base.method and measure in ("dsc", "hd95"):
            continue  # a temperature leaves segmentations as they are
        here, there = (results.comparable(each, measure) for each in (row, base))
        patients = results.patients(row.test_set)
        found = paired_difference(here, there, patients, same_seeds=row.method == base.method)
        keys = {
            **row._asdict(),
            "reference": base.method,
            "reference_temperature": base.temperature,
        }
        records.append(keys | {"measure": measure} | found._asdict())
    columns = [*Row._fields, "reference", "reference_temperature", "measure", *Estimate._fields]
    table = pd.DataFrame(records, columns=columns)
    family = table["measure"].where(~table["measure"].isin(DECIDING), "")
    own = table["method"] == table["reference"]
    grouped = table.groupby(
        ["test_set", "temperature", "reference_temperature", own, family], sort=False
    )
    table["p_value_holm"] = grouped["p_value"].transform(holm) if records else np.nan
    return table


def pairs_of(results: Results, reference: str, test_set: str = "") -> list[tuple[Row, Row]]:
    """Return all rows of a test set with those of the reference, and each method with temperature
    with itself.
    """
    rows = results.rows(test_set)
    pairs = [
        (row, base)
        for base in rows
        if base.method == reference
        for row in rows
        if row.method != reference
    ]
    return pairs + [
        (row, row._replace(temperature=WITHOUT)) for row in rows if row.temperature == WITH
    ]


def differences_section(results: Results, table: pd.DataFrame, test_set: str = "") -> Section:
    """Return `differences` on a test set as a section."""
    records = []
    for record in table.to_dict("records"):
        base = results.label(Row(record["reference"], record["reference_temperature"]))
        label = f"{label_with_temperature(results, row_of(record))} minus {base}"
        records.append(record | {"label": label, "signed": True})
    name, place = (
        "differences" + suffix * bool(test_set) for suffix in (f"_on_{test_set}", f" on {test_set}")
    )
    return Section(
        name,
        place.capitalize(),
        ABOUT_DIFFERENCES + ABOUT_INTERVALS,
        tabulate(records, ["label"]),
        table,
    )


def reliability_section(results: Results) -> Section:
    """Return reliability diagrams of the predicted class for each method, without and with
    temperature.
    """
    pictures = []
    for name, label in results.labels.items():
        panels = {
            title + " + T" * (row.temperature == WITH): results.pooled_bins(row, region)
            for region, title in DIAGRAMS.items()
            for row in results.rows()
            if row.method == name and (row, region) in results.bins_of
        }
        panels = {title: bins for title, bins in panels.items() if bins.count.sum() > 0}
        if panels:
            figure = reliability_diagram(panels, bands=True)
            for axes in figure.axes:
                axes.title.set_fontsize("medium")  # those of neighbours do not touch
            pictures.append(Picture(f"reliability_{name}", label, to_png(figure)))
    caption = (
        "Accuracy over confidence of the predicted class. Diagrams and their ECE are of the voxels"
        " of all cases and seeds; the tables show means over cases. The dark bands hold 95 % of the"
        " accuracies that true probabilities would have if voxels were independent, which those of"
        " one image are not."
    )
    title = "Reliability diagrams, voxels pooled"
    return Section("reliability", title, caption, pictures=pictures, folded=len(results.labels) > 1)


def logits_section(results: Results) -> Section:
    """Return the mean magnitude of the logits."""
    names, tables = results.about["class_names"], {}
    for method in results.methods:
        tables[results.labels[method]] = pd.DataFrame(
            results.about["magnitudes"][method], names, names
        )
    table = pd.concat(tables, names=["label", "ground truth"])
    shown = table.map(lambda value: Cell(number(value, "mean"))).add_prefix("logit of ")
    caption = "Mean magnitude of each logit over the voxels of each ground-truth class."
    return Section("logits", "Magnitude of the logits", caption, shown, table.reset_index())
