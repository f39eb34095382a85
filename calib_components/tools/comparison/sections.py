"""The sections of the report: means, differences, ranks, figures, structures, and what was run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from calib_components.figures import logit_bars, rank_heat_map, reliability_diagram
from calib_components.tools.comparison.page import Picture, Section, TableCell, to_png
from calib_components.tools.comparison.published import METRICS, RANKED, Metric
from calib_components.tools.comparison.results import Method, Results
from calib_components.tools.comparison.statistics import (
    Difference,
    Estimate,
    case_ranks,
    column_ranks,
    holm,
    mean_case_rank_with_interval,
    mean_of_defined,
    mean_with_interval,
    means_over_common_cases,
    paired_difference,
    sum_rank_with_interval,
)

__all__ = [
    "cases_sections",
    "cells_section",
    "differences_section",
    "logits_section",
    "means_section",
    "ranks_section",
    "reliability_section",
    "structures_section",
]

SIGNIFICANT = 0.05
MEAN, DIFFERENCE = "", "+"  # styles of a number, see _number
NONE = "n/a"  # in place of a number


def means_section(results: Results) -> Section:
    """Return the mean of every measure with its interval, beside the published mean."""
    rows, records = _estimates(results, list(METRICS))
    for row, method in zip(rows, results.methods, strict=True):
        missed, spurious = (sum(getattr(cell, what) for cell in method.cells) for what in ("missed", "spurious"))
        row.append(TableCell(f"{missed} / {spurious}"))
    below = "Below each mean: its 95 % interval"
    below += " and the mean that the paper reports for its own test cases. " if results.published else ". "
    caption = (
        f"Mean over the cases of the {results.split} split; the best is bold, the second best underlined. {below}"
        "HD95 is in voxels of the prepared grid, whatever the distance between slices. ECE, CECE, NLL and Brier score "
        "are computed over the ground-truth foreground. The last column counts structures that only the ground truth "
        "(missed) or only the prediction (spurious) contains; they have DSC 0 and no HD95. All intervals on this page "
        "are over patients: they reflect the choice of test patients, not the randomness of training."
    )
    return Section("means", "Means", caption, ["", *map(_heading, METRICS), "missed / spurious"], rows, records)


def structures_section(results: Results) -> Section:
    """Return the mean DSC and HD95 of every structure."""
    measures = [f"{metric}_{name}" for metric in ("dsc", "hd95") for name in results.first.structures]
    rows, records = _estimates(results, measures)
    caption = f"Mean over the cases of the {results.split} split where the measure is defined, with its 95 % interval."
    return Section("structures", "Structures", caption, ["", *map(_heading, measures)], rows, records)


def _estimates(results: Results, measures: Sequence[str]) -> tuple[list[list[TableCell]], list[dict[str, Any]]]:
    rows = [[TableCell(method.label)] for method in results.methods]
    records = []
    for measure in measures:
        values = [method.values(measure) for method in results.methods]
        estimates = [mean_with_interval(of_method, results.patients) for of_method in values]
        marks = _marks(estimates, measure)
        for method, of_method, estimate, mark, row in zip(results.methods, values, estimates, marks, rows, strict=True):
            published = dict(zip(RANKED, results.published.get(method.name, ()), strict=False)).get(measure)
            notes = _interval(estimate, measure)
            if published is not None:
                notes.append(f"paper {_number(published, measure)}")
            row.append(TableCell(_number(estimate.mean, measure), notes, mark))
            cases = int(np.count_nonzero(~np.isnan(of_method)))
            record = {"method": method.name, "measure": measure, **estimate._asdict(), "cases": cases}
            records.append({**record, "seeds": len(method.runs), "published": published})
    return rows, records


def differences_section(results: Results, reference: Method) -> Section:
    """Return the paired differences of every other method to the reference."""
    others = [method for method in results.methods if method is not reference]
    rows = [[TableCell(method.label)] for method in others]
    records = []
    for measure in METRICS:
        base = reference.comparable(measure)
        differences = [paired_difference(method.comparable(measure), base, results.patients) for method in others]
        adjusted = holm([difference.p_value for difference in differences])
        for method, difference, p_value, row in zip(others, differences, adjusted, rows, strict=True):
            notes = _interval(difference, measure, DIFFERENCE)
            if not np.isnan(p_value):
                notes.append("p < 0.001" if p_value < 0.001 else f"p = {_number(p_value, 'p_value')}")
            mark = "bold" if p_value < SIGNIFICANT else ""
            row.append(TableCell(_number(difference.mean, measure, DIFFERENCE), notes, mark))
            record = {"method": method.name, "measure": measure, **difference._asdict()}
            records.append({**record, "p_value_holm": float(p_value)})
    label = reference.label
    caption = (
        f"Each method minus {label} on the same cases: mean difference, its 95 % interval (not corrected for multiple "
        "comparisons), and the p-value of a Wilcoxon signed-rank test on the means of the patients, Holm-corrected "
        f"over the methods; bold if p < {SIGNIFICANT}. {label} is better where DSC is negative and the other measures "
        "are positive. Cases with a missed or spurious structure are left out for HD95."
    )
    return Section("differences", f"Differences to {label}", caption, ["", *map(_heading, METRICS)], rows, records)


def ranks_section(results: Results) -> Section:
    """Return both rankings and their heat maps."""
    better = [METRICS[measure].higher_is_better for measure in RANKED]
    values = [np.stack([method.comparable(measure) for measure in RANKED], axis=1) for method in results.methods]
    of_means, of_cases = column_ranks(means_over_common_cases(values), better), case_ranks(values, better)
    sums = sum_rank_with_interval(values, better, results.patients)
    averages = mean_case_rank_with_interval(values, better, results.patients)
    rows = [[TableCell(method.label)] for method in results.methods]
    records: list[dict[str, Any]] = [{"method": method.name} for method in results.methods]
    for name, estimates in (("sum_rank", sums), ("mean_case_rank", averages)):
        marks = _marks(estimates, name)
        for row, record, estimate, mark in zip(rows, records, estimates, marks, strict=True):
            row.append(TableCell(_number(estimate.mean, name), _interval(estimate, name), mark))
            record.update(zip((name, f"{name}_low", f"{name}_high"), estimate, strict=True))
    labels = [method.label for method in results.methods]
    names = [METRICS[measure].label for measure in RANKED]
    totals = {name: [record[name] for record in records] for name in ("sum_rank", "mean_case_rank")}
    by_column = rank_heat_map(of_means, totals["sum_rank"], labels, [*names, "sum"])
    of_metrics = mean_of_defined(of_cases.swapaxes(0, 1))
    by_case = rank_heat_map(of_metrics, totals["mean_case_rank"], labels, [*names, "mean"])
    pictures = [
        Picture("sum_rank", "Ranks of the means", to_png(by_column)),
        Picture("mean_case_rank", "Mean of the ranks on single cases", to_png(by_case)),
    ]
    caption = (
        "Over DSC, HD95, ECE and CECE, with 95 % intervals; 1 is best, ties share the mean rank. sum-rank: the sum of "
        "the ranks of the means, where the mean of HD95 is over the cases in which no method has a missed or spurious "
        "structure. mean-case-rank: the mean of the ranks on single cases, where a method with a missed or spurious "
        "structure ranks last in HD95."
    )
    header = ["", "sum-rank ↓", "mean-case-rank ↓"]
    return Section("ranks", "Ranks", caption, header, rows, records, pictures)


def reliability_section(results: Results) -> Section:
    """Return reliability diagrams of the predicted class."""
    pictures = []
    for method in results.methods:
        first, *rest = (cell.bins for cell in method.cells)
        figure = reliability_diagram(sum(rest, first))
        pictures.append(Picture(f"reliability_{method.name}", method.label, to_png(figure)))
    caption = (
        "Accuracy over confidence of the predicted class, over the ground-truth foreground voxels of all cases and "
        "seeds. The ECE in each title is pooled over these voxels, whereas the tables show means over cases."
    )
    return Section("reliability", "Reliability diagrams", caption, pictures=pictures)


def logits_section(results: Results) -> Section:
    """Return the mean magnitude of the logits."""
    tables = {method.label: mean_of_defined([cell.magnitudes for cell in method.cells]) for method in results.methods}
    figure = logit_bars(tables, results.first.cells[0].class_names)
    caption = "Mean magnitude of each logit over the voxels of each ground-truth class."
    return Section(
        "logits", "Magnitude of the logits", caption, pictures=[Picture("logits", "Mean |logit|", to_png(figure))]
    )


def cells_section(results: Results) -> Section:
    """Return what was run."""
    cells = [(method, cell) for method in results.methods for cell in method.cells]
    versions = list(dict.fromkeys(name for _, cell in cells for name in cell.settings.made_with))
    rows, records = [], []
    for method, cell in cells:
        history = cell.history
        scored = [epoch for epoch in history if "val_dsc" in epoch]  # none without a validation split
        best = max(scored, key=lambda epoch: epoch["val_dsc"], default=None)
        record = {
            "method": method.name,
            "seed": cell.settings.seed,
            **({} if cell.settings.fold is None else {"fold": cell.settings.fold}),
            "epochs": len(history),
            "best_epoch": best and int(best["epoch"]),
            "best_val_dsc": best and round(best["val_dsc"], 4),
            "seconds_per_epoch": round(float(np.median([epoch["seconds"] for epoch in history])), 1),
            **{name: cell.settings.made_with.get(name) for name in versions},
        }
        records.append(record)
        rows.append([TableCell("" if value is None else str(value)) for value in (method.label, *record.values())])
    validated = any(record["best_epoch"] for record in records)
    training, folds = results.first.settings.training, results.first.settings.folds
    every = f" (validated every {training['val_interval']} epochs)" if training["val_interval"] > 1 else ""
    weights = f"of the best epoch on the validation split{every}" if validated else "of the last epoch"
    size, crop = (" x ".join(map(str, training[name])) for name in ("image_size", "crop_size"))
    central = "" if crop == size else f", of which the central {crop} are segmented and scored"
    channels = training["network_def"].get("channels")
    crossed = f", each by the network of {folds} that was not trained on it" if folds else ""
    caption = (
        f"Evaluated on the {results.split} split, {len(results.first.cases)} cases of {len(set(results.patients))} "
        f"patients{crossed}, with the weights {weights}. Slices of {size} pixels{central}; batch size "
        f"{training['batch_size']}, {training['max_epochs']} epochs, learning rate {training['learning_rate']}"
        + (f", channels {', '.join(map(str, channels))}" if isinstance(channels, list) else "")
        + ". settings.json of each cell has the settings that reach its numbers."
    )
    header = ["", *(name.replace("_", " ") for name in records[0])]
    return Section("cells", "What was run", caption, header, rows, records)


def cases_sections(results: Results) -> list[Section]:
    """Return the best, median and worst case of each method's first cell, for methods whose pictures were kept."""
    caption = (
        "The best, median and worst case by the DSC of the volume: the slice with the most foreground, and the "
        "entropy of its probabilities. Contours have the colours of the classes in the figure of the logits."
    )
    sections = []
    for method in results.methods:
        found = {name: method.cells[0].picture(name) for name in ("best", "median", "worst")}
        pictures = [
            Picture(f"{method.name}_{name}", f"{name.capitalize()} case", png)
            for name, png in found.items()
            if png is not None
        ]
        if pictures:
            sections.append(Section(f"cases_{method.name}", f"Cases: {method.label}", caption, pictures=pictures))
    return sections


def _metric(measure: str) -> Metric:
    return METRICS.get(measure.partition("_")[0], Metric(measure, False))


def _heading(measure: str) -> str:
    metric = _metric(measure)
    return f"{metric.label} {measure.partition('_')[2]}".strip() + (" ↑" if metric.higher_is_better else " ↓")


def _number(value: float, measure: str, style: str = MEAN) -> str:
    """Return a number with the digits of its measure; a difference with its sign and one more digit."""
    if np.isnan(value):
        return NONE
    if measure == "sum_rank":
        return f"{value:g}"
    digits = (2 if measure.startswith(("hd95", "mean_case_rank")) else 3) + (style == DIFFERENCE)
    return f"{round(value, digits) + 0.0:{style}.{digits}f}"  # + 0.0: no -0.000


def _interval(estimate: Estimate | Difference, measure: str, style: str = MEAN) -> list[str]:
    if np.isnan(estimate.low):
        return []
    return [f"[{_number(estimate.low, measure, style)}, {_number(estimate.high, measure, style)}]"]


def _marks(estimates: Sequence[Estimate], measure: str) -> list[str]:
    """Return which of the means, as they are printed, are the best and the second best; none without intervals."""
    defined = [estimate for estimate in estimates if not np.isnan(estimate.mean)]
    if any(np.isnan(estimate.low) for estimate in defined):
        return [""] * len(estimates)
    printed = [_number(estimate.mean, measure) for estimate in estimates]
    places = sorted({float(text) for text in printed if text != NONE}, reverse=_metric(measure).higher_is_better)
    marks = dict(zip(places, ("bold", "underlined"), strict=False)) if len(places) > 1 else {}
    return ["" if text == NONE else marks.get(float(text), "") for text in printed]
