"""Sections of a report: means, differences, what a temperature changes, diagrams, logits, cells, cases."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from calib_components.figures import reliability_diagram
from calib_components.tools.report.data import PUBLISHED, WITH, WITHOUT, Results, Row
from calib_components.tools.report.figures import logit_bars, mean_intervals
from calib_components.tools.report.page import Cell, Picture, Section, to_png
from calib_components.tools.report.statistics import (
    FEWEST_PATIENTS,
    Estimate,
    holm,
    mean_of_defined,
    mean_with_interval,
    paired_difference,
)
from calib_components.tools.report.text import CONCLUDED, Record, heading, listed, tabulate

ABOUT_REGIONS = (
    "The prediction chooses the voxels of the regions all, predicted and plausible (p of a structure above .05): true "
    "probabilities have an ECE of 0 there, up to sampling. The ground truth chooses the foreground: true probabilities "
    'have the error "if true" there, and a lower one does not mean better calibration. '
)
ABOUT_TEMPERATURE = (
    "+ T: logits are divided by a temperature T that was fitted on the validation split. T > 1: the network was "
    "overconfident there. The segmentation stays the same. "
)
ABOUT_FOLDS = "Folds share one T, fitted on cases that other folds test: results with T are slightly optimistic. "
ABOUT_FOUND_IN_ONE = (
    "Missed structures are in the ground truth alone, spurious ones in the prediction alone: DSC 0 and no HD95. "
)
ABOUT_SEEDS = (
    "Seeds and patients are both random: intervals and p-values are those of Student's t. Those of a method with one "
    "seed are over patients alone and about this trained network. "
)
ABOUT_PATIENTS = "Intervals are over patients: they are about these trained networks, not about another training. "
DIAGRAMS = {"all": "All voxels", "predicted": "Predicted foreground"}


def about_intervals(results: Results) -> str:
    """Return what intervals of the results are over."""
    several = any(results.seeds(row) > 1 for row in results.groups)
    return ABOUT_SEEDS if several else ABOUT_PATIENTS


def row_of(record: Record) -> Row:
    """Return the row that a record is of."""
    return Row(*(record[name] for name in Row._fields))


def mean_records(results: Results, rows: Sequence[Row], measures: Sequence[str]) -> list[dict[str, Any]]:
    """Return the mean of each measure and row with its interval and its spread over seeds and over patients."""
    records = []
    for measure, row in itertools.product(measures, rows):
        values, patients = results.values(row, measure), results.patients(row.test_set)
        record = {**row._asdict(), "label": results.label(row), "measure": measure}
        record |= mean_with_interval(values, patients)._asdict()
        del record["p_value"]
        record["seeds"] = results.seeds(row)
        record["sd_seeds"] = float(pd.Series(mean_of_defined(values, axis=1)).std())
        record["sd_patients"] = float(pd.Series(mean_of_defined(values)).groupby(patients.to_numpy()).mean().std())
        of_paper = results.papers.get(row.test_set), row.method
        if row.temperature == WITHOUT and measure in PUBLISHED and of_paper in PUBLISHED.index:
            record["published"] = PUBLISHED.loc[of_paper, measure]
        if results.has(f"{measure}_if_true"):
            record["if_true"] = float(mean_of_defined(mean_of_defined(results.values(row, f"{measure}_if_true"))))
        records.append(record)
    return records


def row_cell(results: Results, row: Row) -> Cell:
    """Return the name of a row and its temperature: with its interval, or of several seeds from lowest to highest."""
    label = results.label(row)
    if row.temperature == WITHOUT or results.temperatures.empty:
        return Cell(label)
    fits = results.fits(row)
    low, high = (f"{end:.2f}" for end in (fits["temperature"].min(), fits["temperature"].max()))
    if fits["seed"].nunique() > 1 or np.isnan(fits["low"].iloc[0]):
        return Cell(label, (f"T {low}" + f" to {high}" * (low != high),))
    return Cell(label, (f"T {low} [{fits['low'].iloc[0]:.2f}, {fits['high'].iloc[0]:.2f}]",))


def means_section(results: Results, measures: Sequence[str], test_set: str = "") -> Section:
    """Return the mean of every measure with its interval, without and with temperature."""
    rows, name = results.rows(test_set), "means" + f"_on_{test_set}" * bool(test_set)
    records = mean_records(results, rows, [measure for measure in measures if results.has(measure)])
    header, lines = tabulate(records, lambda record: (row_cell(results, row_of(record)),), marked=True)
    for row, line in zip(rows, lines, strict=True):
        counts = (float(np.nansum(results.values(row, kind), axis=1).mean()) for kind in ("missed", "spurious"))
        line.append(Cell(" / ".join(f"{round(count, 1):g}" for count in counts)))
    pictures = []
    panels = {
        heading(measure): [[r["mean"], r["low"], r["high"]] for r in records if r["measure"] == measure]
        for measure in CONCLUDED
        if measure in measures and results.has(measure)
    }
    if panels and len(rows) > 1 and results.patients(test_set).nunique() >= FEWEST_PATIENTS:
        hollow = [row.temperature == WITH for row in rows]
        figure = mean_intervals(panels, [results.label(row) for row in rows], hollow)
        pictures = [Picture(name, "Means with 95 % intervals; hollow: with temperature", to_png(figure))]
    caption = f"{results.count(test_set)}. Mean over cases, below it its 95 % interval. "
    caption += "The best is bold, the second best underlined. " * (len(rows) > 1)
    if test_set:
        title = f"Means on {test_set}"
        caption += f"The same networks and temperatures as above; nothing was fitted on {test_set}."
    else:
        title = "Means"
        if any(row.temperature == WITH for row in rows):
            caption += ABOUT_TEMPERATURE + ABOUT_FOLDS * bool(results.about.get("folds"))
        caption += f"HD95 is in {results.about['unit']}. " + ABOUT_REGIONS * results.has("ece_all") + ABOUT_FOUND_IN_ONE
        caption += about_intervals(results)
    return Section(name, title, caption, ["", *header, "missed / spurious"], lines, records, pictures)


def structures_section(results: Results) -> Section:
    """Return the mean DSC and HD95 of every structure."""
    measures = [f"{metric}_{name}" for metric in ("dsc", "hd95") for name in results.structures]
    records = mean_records(results, results.rows(temperatures=[WITHOUT]), measures)
    titled = [record | {"column": heading(record["measure"], results.structures)} for record in records]
    header, lines = tabulate(titled, lambda record: (Cell(record["label"]),), marked=True)
    caption = "Mean over the cases where the measure is defined, with its 95 % interval."
    return Section("structures", "Structures", caption, ["", *header], lines, records)


def differences(results: Results, pairs: Sequence[tuple[Row, Row]], measures: Sequence[str]) -> pd.DataFrame:
    """Return paired differences of rows to reference rows on the same cases, with Holm-corrected p-values.

    P-values of a measure are corrected over the pairs with the same conditions; those of `CONCLUDED` over these
    measures, too.
    """
    records = []
    for (row, base), measure in itertools.product(pairs, measures):
        if row.method == base.method and measure in ("dsc", "hd95"):
            continue  # a temperature leaves segmentations as they are
        here, there = (results.comparable(each, measure) for each in (row, base))
        patients = results.patients(row.test_set)
        found = paired_difference(here, there, patients, same_seeds=row.method == base.method)
        names = {**row._asdict(), "reference_temperature": base.temperature, "measure": measure}
        records.append(names | found._asdict())
    columns = [*Row._fields, "reference_temperature", "measure", *Estimate._fields]
    table = pd.DataFrame(records, columns=columns)
    family = table["measure"].where(~table["measure"].isin(CONCLUDED), "")
    grouped = table.groupby(["test_set", "temperature", "reference_temperature", family], sort=False)
    table["p_value_holm"] = grouped["p_value"].transform(holm) if records else np.nan
    return table


def reference_pairs(results: Results, reference: str, test_set: str = "") -> list[tuple[Row, Row]]:
    """Return all rows of a test set with the reference, without and with its temperature."""
    rows = results.rows(test_set)
    return [(row, base) for base in rows if base.method == reference for row in rows if row != base]


def differences_section(results: Results, reference: str, table: pd.DataFrame, test_set: str = "") -> Section:
    """Return the paired differences to a reference, from `differences` of `reference_pairs`, as a section."""
    rows, measures = results.rows(test_set), list(table["measure"].unique())
    records = sorted(table.to_dict("records"), key=lambda record: rows.index(row_of(record)))
    bases = [row for row in rows if row.method == reference]
    titles = {
        (base.temperature, measure): f"{heading(measure)} minus {results.label(base)}"
        for base, measure in itertools.product(bases, measures)
    }
    header, lines = tabulate(
        [record | {"column": titles[record["reference_temperature"], record["measure"]]} for record in records],
        lambda record: (Cell(results.label(row_of(record))),),
        columns=[*titles.values()],
        signed=True,
    )
    together = [heading(measure, arrow=False) for measure in CONCLUDED if measure in measures]
    label = results.labels[reference]
    caption = (
        f"Each line minus {label} on the same cases: mean difference, its 95 % interval, not corrected for multiple "
        f"comparisons, and the p-value, Holm-corrected over the lines{' and ' * bool(together)}{listed(together)}. "
        "Bold: p < 0.05 and 0 not in the interval. HD95 leaves out cases with a missed or spurious structure. The DSC "
        f"is 1 where there is nothing to find and nothing is found. {about_intervals(results)}"
    )
    name, title = "differences", f"Differences to {label}"
    if test_set:
        name, title = f"{name}_on_{test_set}", f"{title} on {test_set}"
    return Section(name, title, caption, ["", *header], lines, table)


def temperature_section(results: Results, measures: Sequence[str]) -> Section:
    """Return the paired differences with temperature minus without, of every method on every test set."""
    rows = [row for test_set in ("", *results.test_sets) for row in results.rows(test_set, [WITH])]
    table = differences(results, [(row, row._replace(temperature=WITHOUT)) for row in rows], measures)

    def place(record: Record) -> tuple[Cell, ...]:
        named = row_cell(results, row_of(record))
        where = record["test_set"] or f"own {results.about['split']}"
        return named._replace(text=results.labels[record["method"]]), Cell(where)

    header, lines = tabulate(table.to_dict("records"), place, signed=True)
    caption = (
        "With temperature minus without, on the same cases. Negative is better, except over the foreground, which the "
        "ground truth chooses: its ECE can rise where calibration gets better. T was fitted by the NLL of the "
        f"validation cases (region {results.about['fitted_in']}). "
    )
    for warning, fits in results.temperatures.groupby("warnings", sort=False):
        if warning:
            runs = zip(fits["method"].map(results.labels), fits["seed"], strict=True)
            caption += f"{'; '.join(dict.fromkeys(f'{name}, seed {seed}' for name, seed in runs))}: {warning} "
    return Section("temperature", "What temperature changes", caption, ["", "test set", *header], lines, table)


def reliability_section(results: Results) -> Section:
    """Return reliability diagrams of the predicted class for each method, without and with temperature."""
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
        if results.about.get("notices") == []:  # the figure of the evaluation is of all cases
            pictures += saved_pictures(results, {"reliability_classes": f"{label}: each class, over all voxels"}, name)
    caption = (
        "Accuracy over confidence of the predicted class, of the voxels of all cases and seeds; the tables show means "
        "over cases instead. The dark bands hold 95 % of the accuracies that true probabilities would have if voxels "
        "were independent, which those of one image are not."
    )
    return Section("reliability", "Reliability diagrams", caption, pictures=pictures)


def saved_pictures(results: Results, titles: dict[str, str], method: str) -> list[Picture]:
    """Return the figures that the evaluation of a method has, of some with their titles."""
    files = {name: results.folders.get(method, Path("nowhere")) / f"{name}.png" for name in titles}
    return [
        Picture(f"{file.stem}_{method}", titles[name], file.read_bytes())
        for name, file in files.items()
        if file.exists()
    ]


def logits_section(results: Results) -> Section:
    """Return the mean magnitude of the logits."""
    tables = {results.labels[name]: results.about["magnitudes"][name] for name in results.methods}
    picture = Picture("logits", "Mean |logit|", to_png(logit_bars(tables, results.about["class_names"])))
    caption = "Mean magnitude of each logit over the voxels of each ground-truth class."
    return Section("logits", "Magnitude of the logits", caption, pictures=[picture])


def cells_section(results: Results) -> Section:
    """Return what was run."""
    table, keys = results.cells, ["method", "seed", "fold"]
    if not results.temperatures.empty:
        columns = {"temperature": "temperature", "low": "temperature_low", "high": "temperature_high"}
        columns |= {"patients": "fitted_on", "nll_before": "val_nll", "nll_after": "val_nll_with_temperature"}
        fits = results.temperatures.rename(columns=columns)[[*keys, *columns.values()]]
        table = table.merge(fits.round(5), "left", keys)
    table = table if results.about.get("folds") else table.drop(columns="fold")
    shown = table.replace({"method": results.labels}).astype(object)
    text = shown.map(lambda value: "" if pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value))
    cells = [[Cell(value) for value in line] for line in text.to_numpy()]
    training = [f"{name.replace('_', ' ')} {value}" for name, value in results.about["training"].items() if value]
    weights = "of the best epoch on the validation split" if table["best_epoch"].notna().any() else "of the last epoch"
    caption = (
        f"Evaluated on the {results.about['split']} split, with the weights {weights}: {', '.join(training)}. "
        "settings.json of a cell has all settings."
    )
    header = ["" if name == "method" else name.replace("_", " ") for name in table]
    return Section("cells", "What was run", caption, header, cells, table)


def cases_sections(results: Results, first: str) -> list[Section]:
    """Return the pictures of the best, median and worst case of each method, where they were kept; one method first."""
    caption = (
        "The best, median and worst case by the DSC of the volume: the slice with the most foreground, and the entropy "
        "of its probabilities, if there are any. Contours have the colours of the classes."
    )
    titles = {f"cases/{kind}": f"{kind.capitalize()} case" for kind in ("best", "median", "worst")}
    found = {
        name: saved_pictures(results, titles, name) for name in sorted(results.methods, key=lambda name: name != first)
    }
    return [
        Section(f"cases_{name}", f"Cases: {results.labels[name]}", caption, pictures=pictures)
        for name, pictures in found.items()
        if pictures
    ]
