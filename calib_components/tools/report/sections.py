"""Sections of a report: means, differences, what a temperature changes, variation, diagrams, logits, cells, cases."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from calib_components.figures import logit_bars, mean_intervals, reliability_diagram
from calib_components.tools.report.data import WITH, WITHOUT, Results, Row
from calib_components.tools.report.page import Cell, Picture, Section, to_png
from calib_components.tools.report.published import PUBLISHED, dataset_of
from calib_components.tools.report.statistics import (
    FEWEST_PATIENTS,
    Array,
    Estimate,
    holm,
    mean_of_defined,
    mean_with_interval,
    paired_difference,
)
from calib_components.tools.report.text import (
    CONCLUDED,
    RANKED,
    best_marks,
    heading,
    interval,
    is_significant,
    listed,
    number,
    p_text,
)

ABOUT_REGIONS = (
    "The prediction chooses the voxels of these regions, so true probabilities have an ECE of 0 there, up to sampling: "
    "all, every voxel; predicted, where a structure is predicted; plausible, where the probability of a structure is "
    "above .05. The ground truth chooses the foreground, where even true probabilities have an error: the small number "
    '"if true". An error below it does not mean better calibration. '
)
ABOUT_TEMPERATURE = (
    "+ T: the same network, its logits divided by the temperature T that was fitted on the validation split of its own "
    "data. T > 1: the network was overconfident there; T < 1: underconfident. The segmentation stays the same. "
)
ABOUT_FOLDS = (
    "T is one number for the networks of all folds. Each test patient is a validation patient of another network, so "
    "results with T are slightly optimistic. "
)
ABOUT_FOUND_IN_ONE = (
    "Missed structures are in the ground truth alone, spurious ones in the prediction alone. They have DSC 0 and no "
    "HD95. "
)
ABOUT_SEEDS = (
    "A value of a case is the mean over seeds. Seeds and patients are both random: intervals and p-values are those of "
    "Student's t; of a method with one seed, they are over patients alone and about this trained network. "
)
ABOUT_PATIENTS = "Intervals are over patients: they are about these trained networks, not about another training. "
FOUND_IN_ONE = "missed / spurious"
DIAGRAMS = {"all": "All voxels", "predicted": "Predicted foreground"}
DRAWN = ("nll_all", "ece_all", "ece_predicted")


def about_intervals(results: Results) -> str:
    """Return what intervals of the results are over."""
    several = any(results.seeds(row) > 1 for row in results.groups)
    return ABOUT_SEEDS if several else ABOUT_PATIENTS


def mean_rows(
    results: Results, rows: Sequence[Row], measures: Sequence[str]
) -> tuple[list[list[Cell]], list[dict[str, Any]], dict[str, list[Estimate]]]:
    """Return cells, records and estimates of a table of means: a line for each row, a column for each measure."""
    published = PUBLISHED.get(dataset_of(results) or "", {}) if results.about.get("split") == "testing" else {}
    cells: list[list[Cell]] = [[Cell(results.label(row), _temperature(results, row))] for row in rows]
    records, found = [], {}
    for measure in measures:
        values = {row: results.values(row, measure) for row in rows}
        patients = results.patients(rows[0].test_set)
        found[measure] = estimates = [mean_with_interval(values[row], patients) for row in rows]
        for row, line, estimate, mark in zip(rows, cells, estimates, best_marks(estimates, measure), strict=True):
            notes = interval(estimate, measure)
            record = {**row._asdict(), "label": results.label(row), "measure": measure}
            record |= {"mean": estimate.mean, "low": estimate.low, "high": estimate.high, "cases": estimate.cases}
            spreads = _standard_deviations(values[row], patients)
            record |= {"seeds": results.seeds(row), "sd_seeds": spreads[0], "sd_patients": spreads[1]}
            of_paper = dict(zip(RANKED, published.get(row.method, ()), strict=False)).get(measure)
            if of_paper is not None and not row.test_set and row.temperature == WITHOUT:
                notes.append(f"paper {number(of_paper, measure)}")
                record["published"] = of_paper
            if results.has(f"{measure}_if_true"):
                record["if_true"] = float(mean_of_defined(mean_of_defined(results.values(row, f"{measure}_if_true"))))
                notes.append(f"{number(record['if_true'], measure)} if true")
            line.append(Cell(number(estimate.mean, measure), notes, mark))
            records.append(record)
    return cells, records, found


def _temperature(results: Results, row: Row) -> list[str]:
    """Return the temperature of a row as notes: with its interval, or of several seeds from lowest to highest."""
    if row.temperature == WITHOUT or results.temperatures.empty:
        return []
    fits = results.temperatures[results.temperatures["method"] == row.method]
    low, high = (f"{end:.2f}" for end in (fits["temperature"].min(), fits["temperature"].max()))
    if fits["seed"].nunique() > 1 or np.isnan(fits["low"].iloc[0]):
        return [f"T {low}" + f" to {high}" * (low != high)]
    return [f"T {low} [{fits['low'].iloc[0]:.2f}, {fits['high'].iloc[0]:.2f}]"]


def means_section(results: Results, measures: Sequence[str], test_set: str = "") -> Section:
    """Return the mean of every measure with its interval, without and with temperature."""
    rows, name = results.rows(test_set), "means" + f"_on_{test_set}" * bool(test_set)
    measures = [measure for measure in measures if results.has(measure)]
    cells, records, estimates = mean_rows(results, rows, measures)
    for row, line in zip(rows, cells, strict=True):
        line.append(Cell(" / ".join(f"{round(count, 1):g}" for count in results.found_in_one(row))))
    header = ["", *(heading(measure) for measure in measures), FOUND_IN_ONE]
    pictures, places = [], results.places(test_set)
    drawn = {measure: estimates[measure] for measure in DRAWN if measure in estimates}
    if drawn and len(rows) > 1 and places.nunique() >= FEWEST_PATIENTS:
        panels = {heading(measure): [of[:3] for of in found] for measure, found in drawn.items()}
        hollow = [row.temperature == WITH for row in rows]
        figure = mean_intervals(panels, [results.label(row) for row in rows], hollow)
        pictures = [Picture(name, "Means with 95 % intervals; hollow: with temperature", to_png(figure))]
    cases = f"{len(places)} case{'s' * (len(places) != 1)}"
    of_patients = "" if cases == results.count(test_set) else f" of {results.count(test_set)}"
    caption = f"Mean over {cases}{of_patients}, below it its 95 % interval. "
    if len(rows) > 1:
        caption += "The best is bold, the second best underlined. "
    if test_set:
        caption += f"The same networks and temperatures as above; nothing was fitted on {test_set}."
        return Section(name, f"Means on {test_set}", caption, header, cells, records, pictures)
    if any(row.temperature == WITH for row in rows):
        caption += ABOUT_TEMPERATURE + ABOUT_FOLDS * bool(results.folds)
    caption += f"HD95 is in {results.about['unit']}. " + ABOUT_REGIONS * results.has("ece_all") + ABOUT_FOUND_IN_ONE
    return Section(name, "Means", caption + about_intervals(results), header, cells, records, pictures)


def structures_section(results: Results) -> Section:
    """Return the mean DSC and HD95 of every structure."""
    measures = [f"{metric}_{name}" for metric in ("dsc", "hd95") for name in results.structures]
    cells, records, _ = mean_rows(results, results.rows(temperatures=[WITHOUT]), measures)
    header = ["", *(heading(measure, results.structures) for measure in measures)]
    caption = "Mean over the cases where the measure is defined, with its 95 % interval."
    return Section("structures", "Structures", caption, header, cells, records)


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


def _cells(table: pd.DataFrame) -> dict[tuple[Row, str, str], Cell]:
    """Return the cells of a table of differences, by row, temperature of the reference and measure."""
    cells = {}
    for record in table.to_dict("records"):
        found, measure = Estimate(*(record[name] for name in Estimate._fields)), record["measure"]
        notes = [*interval(found, measure, signed=True), *p_text(record["p_value_holm"])]
        mark = "bold" if is_significant(found, record["p_value_holm"]) else ""
        key = Row(*(record[name] for name in Row._fields)), record["reference_temperature"], measure
        cells[key] = Cell(number(found.mean, measure, signed=True), notes, mark)
    return cells


def reference_pairs(results: Results, reference: str, test_set: str = "") -> list[tuple[Row, Row]]:
    """Return all rows of a test set with the reference, without and with its temperature."""
    rows = results.rows(test_set)
    return [(row, base) for base in rows if base.method == reference for row in rows if row != base]


def differences_section(results: Results, reference: str, table: pd.DataFrame, test_set: str = "") -> Section:
    """Return the paired differences to a reference, from `differences` of `reference_pairs`, as a section."""
    found, measures = _cells(table), list(table["measure"].unique())
    bases = [base for base in results.rows(test_set) if base.method == reference]
    columns = [(base, measure) for base in bases for measure in measures]
    cells = [
        [Cell(results.label(row)), *(found.get((row, base.temperature, m), Cell("")) for base, m in columns)]
        for row in results.rows(test_set)
        if row.method != reference or len(bases) > 1
    ]
    together = [heading(measure, arrow=False) for measure in CONCLUDED if measure in measures]
    label = results.about["labels"][reference]
    caption = (
        f"Each line minus {label} on the same cases: mean difference, its 95 % interval, not corrected for multiple "
        f"comparisons, and the p-value, Holm-corrected over the lines{' and ' * bool(together)}{listed(together)}. "
        "Bold: p < 0.05 and 0 not in the interval. Cases with a missed or spurious structure are left out for HD95; "
        f"where there is nothing to find, a DSC is 1 if nothing is found. {about_intervals(results)}"
    )
    header = ["", *(f"{heading(measure)} minus {results.label(base)}" for base, measure in columns)]
    name, title = "differences", f"Differences to {label}"
    if test_set:
        name, title = f"{name}_on_{test_set}", f"{title} on {test_set}"
    return Section(name, title, caption, header, cells, table)


def temperature_section(results: Results, measures: Sequence[str]) -> Section:
    """Return the paired differences with temperature minus without, of every method on every test set."""
    measures = [measure for measure in measures if results.has(measure) and measure not in ("dsc", "hd95")]
    rows = [row for test_set in ("", *results.test_sets) for row in results.rows(test_set, [WITH])]
    table = differences(results, [(row, row._replace(temperature=WITHOUT)) for row in rows], measures)
    found = _cells(table)
    cells = [
        [
            Cell(results.about["labels"][row.method], _temperature(results, row)),
            Cell(row.test_set or f"own {results.about['split']}"),
            *(found[row, WITHOUT, measure] for measure in measures),
        ]
        for row in rows
    ]
    caption = (
        "With temperature minus without, on the same cases. Negative is better, except over the foreground: the ground "
        "truth chooses it, so its ECE can rise where calibration gets better. T was fitted by the NLL of the "
        f"validation cases (region {results.about['fitted_in']}). "
    )
    for warning, fits in results.temperatures.groupby("warnings", sort=False):
        if warning:
            runs = zip(fits["method"].map(results.about["labels"]), fits["seed"], strict=True)
            caption += f"{'; '.join(dict.fromkeys(f'{name}, seed {seed}' for name, seed in runs))}: {warning} "
    header = ["", "test set", *(heading(measure) for measure in measures)]
    return Section("temperature", "What temperature changes", caption.strip(), header, cells, table)


def _standard_deviations(values: Array, patients: Sequence[str]) -> tuple[float, float]:
    """Return the standard deviation of the means of seeds, and of those of patients."""
    of_patients = pd.Series(mean_of_defined(values)).groupby(np.asarray(patients)).mean()
    return float(pd.Series(mean_of_defined(values, axis=1)).std()), float(of_patients.std())


def reliability_section(results: Results) -> Section:
    """Return reliability diagrams of the predicted class for each method, without and with temperature."""
    pictures = []
    for name in results.methods:
        rows = [row for row in results.rows() if row.method == name]
        panels = {
            title + " + T" * (row.temperature == WITH): results.pooled_bins(row, region)
            for region, title in DIAGRAMS.items()
            for row in rows
            if region in results.regions(row)
        }
        panels = {title: bins for title, bins in panels.items() if bins.count.sum() > 0}
        if panels:
            figure = reliability_diagram(panels, bands=True)
            for axes in figure.axes:
                axes.title.set_fontsize("medium")  # those of neighbours do not touch
            pictures.append(Picture(f"reliability_{name}", results.about["labels"][name], to_png(figure)))
    caption = (
        "Accuracy over confidence of the predicted class, over all voxels and over those that are predicted as "
        "foreground, of all cases and seeds. The accuracy is where blue ends, or yellow on top of it: there the "
        "network is underconfident. The ECE in each title is pooled over these voxels, whereas the tables show means "
        "over cases. The dark bands hold 95 % of the accuracies that true probabilities would have if voxels were "
        "independent, which those of one image are not."
    )
    return Section("reliability", "Reliability diagrams", caption, pictures=pictures)


def logits_section(results: Results) -> Section:
    """Return the mean magnitude of the logits."""
    tables = {results.about["labels"][name]: results.about["magnitudes"][name] for name in results.methods}
    figure = logit_bars(tables, results.about["class_names"])
    caption = "Mean magnitude of each logit over the voxels of each ground-truth class."
    return Section(
        "logits", "Magnitude of the logits", caption, pictures=[Picture("logits", "Mean |logit|", to_png(figure))]
    )


def cells_section(results: Results) -> Section:
    """Return what was run."""
    table, keys = results.cells, ["method", "seed", "fold"]
    if not results.temperatures.empty:
        columns = {"temperature": "temperature", "low": "temperature_low", "high": "temperature_high"}
        columns |= {"patients": "fitted_on", "nll_before": "val_nll", "nll_after": "val_nll_with_temperature"}
        fits = results.temperatures.rename(columns=columns)[[*keys, *columns.values()]]
        table = table.merge(fits.round(5), "left", keys)
    table = table if results.folds else table.drop(columns="fold")
    shown = table.replace({"method": results.about["labels"]}).astype(object)
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


def cases_sections(results: Results, first: str | None = None) -> list[Section]:
    """Return the pictures of the best, median and worst case of each method, where they were kept."""
    caption = (
        "The best, median and worst case by the DSC of the volume: the slice with the most foreground, and the entropy "
        "of its probabilities, if there are any. Contours have the colours of the classes."
    )
    sections = []
    for name in sorted(results.methods, key=lambda name: name != first):
        files = {
            kind: results.folders.get(name, Path("nowhere")) / f"cases/{kind}.png"
            for kind in ("best", "median", "worst")
        }
        pictures = [
            Picture(f"{name}_{kind}", f"{kind.capitalize()} case", file.read_bytes())
            for kind, file in files.items()
            if file.exists()
        ]
        if pictures:
            title = f"Cases: {results.about['labels'][name]}"
            sections.append(Section(f"cases_{name}", title, caption, pictures=pictures))
    return sections
