"""Sections of the report: differences, ranks, logits, what was run, and cases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from calib_components.figures import logit_bars, rank_heat_map
from calib_components.posthoc import TemperatureEstimate
from calib_components.tools.report.measured import Comparison, Method
from calib_components.tools.report.page import Picture, Section, TableCell, to_png
from calib_components.tools.report.published import METRICS, RANKED
from calib_components.tools.report.ranks import (
    RankedCases,
    case_ranks,
    column_ranks,
    mean_case_rank_with_interval,
    means_over_common_cases,
    sum_rank_with_interval,
)
from calib_components.tools.report.results import Results
from calib_components.tools.report.statistics import mean_of_defined
from calib_components.tools.report.tables import (
    DIFFERENCE,
    SIGNIFICANT,
    best_marks,
    heading,
    higher_is_better,
    interval,
    is_told,
    number,
    p_text,
    plain_heading,
)

__all__ = [
    "cases_sections",
    "cells_section",
    "differences_section",
    "logits_section",
    "over_measures",
    "rank_tables",
    "ranked_cases",
    "ranks_section",
]

RANK_HEADINGS = ("sum-rank ↓", "mean-case-rank ↓")
ABOUT_RANKS = (
    "1 is best, ties share the mean rank. sum-rank: the sum of the ranks of the means, each over the cases in which "
    "all methods have a value: HD95 has none where a structure is missed or spurious. mean-case-rank: the mean of the "
    "ranks on single cases, where a method without a value ranks last. A case with nothing to find is ranked by DSC "
    "alone, which is 1 if nothing is found. There is no interval where fewer than six patients have all values."
)


def differences_section(
    compared: Comparison, reference: Method, measures: Iterable[str] = tuple(METRICS), about: str = ""
) -> Section:
    """Return the paired differences of every other method to the reference.

    Args:
        compared: The methods.
        reference: The one that the others are compared with.
        measures: What is compared.
        about: End of the caption, such as what all measures have in common.
    """
    rows = [[TableCell(method.label)] for method in compared.methods if method is not reference]
    records = []
    for measure in measures:
        differences = compared.differences(measure, reference)
        for (method, (difference, p_value)), row in zip(differences.items(), rows, strict=True):
            notes = [*interval(difference, measure, DIFFERENCE), *p_text(p_value)]
            mark = "bold" if is_told(difference, p_value) else ""
            row.append(TableCell(number(difference.mean, measure, DIFFERENCE), notes, mark))
            record = {"method": method.name, "measure": measure, **difference._asdict()}
            records.append({**record, "p_value_holm": p_value})
    label = reference.label
    caption = (
        f"Each method minus {label} on the same cases: mean difference, its 95 % interval (not corrected for multiple "
        "comparisons), and the p-value of a test of the mean by changing signs of patients, Holm-corrected over the "
        f"methods{over_measures(compared)}; bold if p < {SIGNIFICANT} and the interval is to one side of 0. {label} is "
        "better where DSC is negative and the other measures are positive. Cases with a missed or spurious structure "
        "are left out for HD95; where there is nothing to find, a DSC is 1 if nothing is found." + about
    )
    region = "foreground" if compared.has_regions else ""
    header = ["", *(heading(measure, region) for measure in measures)]
    return Section("differences", f"Differences to {label}", caption, header, rows, records)


def over_measures(compared: Comparison) -> str:
    """Return, for a caption, over which measures p-values are corrected together."""
    names = [plain_heading(measure) for measure in compared.concluded]
    return f" and, for {', '.join(names[:-1])} and {names[-1]}, over these measures" if names else ""


def ranks_section(compared: Comparison, measures: Sequence[str] = RANKED, about: str = "") -> Section:
    """Return both rankings over some measures and their heat maps. Arguments as in `differences_section`."""
    names = [plain_heading(measure) for measure in measures]
    cells, records, pictures = rank_tables([ranked_cases(compared, measures)], compared.methods, measures, names)
    rows = [[TableCell(method.label), *line] for method, line in zip(compared.methods, cells, strict=True)]
    caption = f"Over {', '.join(names[:-1])} and {names[-1]}, with 95 % intervals; {ABOUT_RANKS}{about}"
    return Section("ranks", "Ranks", caption, ["", *RANK_HEADINGS], rows, records, pictures)


def ranked_cases(compared: Comparison, measures: Sequence[str], networks: int = 0, population: int = 0) -> RankedCases:
    """Return what methods are ranked by. Arguments as those of `RankedCases`.

    Cases in which there is nothing to find are ranked by DSC alone: a method that rightly finds nothing has no error of
    calibration in what it predicts.
    """
    nothing = np.any([run.finds_nothing for method in compared.methods for run in method.runs], axis=0)
    by_run = [
        np.stack(
            [np.where(nothing & (measure != "dsc"), np.nan, method.comparable(measure)) for measure in measures], axis=2
        )
        for method in compared.methods
    ]
    return RankedCases(by_run, compared.patients, networks, population)


def rank_tables(
    datasets: Sequence[RankedCases], methods: Sequence[Method], measures: Sequence[str], columns: Sequence[str]
) -> tuple[list[list[TableCell]], list[dict[str, Any]], list[Picture]]:
    """Return the sum-rank and the mean-case-rank of each method as cells and as records, and their heat maps.

    Args:
        datasets: What they are ranked by.
        methods: The methods.
        measures: The measures.
        columns: Names of the columns of the heat maps: the measures of each data set.
    """
    better = [higher_is_better(measure) for measure in measures]
    values = [dataset.of_methods for dataset in datasets]
    of_means = [column_ranks(means_over_common_cases(of_dataset), better) for of_dataset in values]
    of_cases = [mean_of_defined(case_ranks(of_dataset, better).swapaxes(0, 1)) for of_dataset in values]
    patients = [f"{dataset.population}/{name}" for dataset in datasets for name in dataset.patients]
    averages = mean_case_rank_with_interval(np.concatenate(values, axis=1), better, patients)
    labels = [method.label for method in methods]
    cells: list[list[TableCell]] = [[] for _ in methods]
    records: list[dict[str, Any]] = [{"method": method.name} for method in methods]
    pictures = []
    for name, title, estimates, ranks, last in (
        ("sum_rank", "Ranks of the means", sum_rank_with_interval(datasets, better), of_means, "sum"),
        ("mean_case_rank", "Mean of the ranks on single cases", averages, of_cases, "mean"),
    ):
        marks = best_marks(estimates, name)
        for line, record, estimate, mark in zip(cells, records, estimates, marks, strict=True):
            line.append(TableCell(number(estimate.mean, name), interval(estimate, name), mark))
            record.update(zip((name, f"{name}_low", f"{name}_high"), estimate, strict=True))
        totals = [estimate.mean for estimate in estimates]
        figure = rank_heat_map(np.concatenate(ranks, axis=1), totals, labels, [*columns, last])
        pictures.append(Picture(name, title, to_png(figure)))
    return cells, records, pictures


def logits_section(results: Results) -> Section:
    """Return the mean magnitude of the logits."""
    tables = {
        method.label: mean_of_defined([evaluation.magnitudes for evaluation in method.evaluations])
        for method in results.methods
    }
    figure = logit_bars(tables, results.first.evaluations[0].class_names)
    caption = "Mean magnitude of each logit over the voxels of each ground-truth class."
    return Section(
        "logits", "Magnitude of the logits", caption, pictures=[Picture("logits", "Mean |logit|", to_png(figure))]
    )


def cells_section(results: Results) -> Section:
    """Return what was run."""
    cells = [(method, cell) for method in results.methods for cell in method.cells]
    versions = list(dict.fromkeys(name for _, cell in cells for name in cell.settings.made_with))
    scaled = any(cell.temperature for _, cell in cells)
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
            **(_fit(cell.temperature) if scaled else {}),
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


def _fit(temperature: TemperatureEstimate | None) -> dict[str, float | int | None]:
    """Return the columns of a temperature; their NLL is over the voxels that it was fitted on."""
    columns = {
        "temperature": ("temperature", 3),
        "low": ("temperature_low", 3),
        "high": ("temperature_high", 3),
        "patients": ("fitted_on", 0),
        "nll_before": ("val_nll", 5),
        "nll_after": ("val_nll_with_temperature", 5),
    }
    found = {name: getattr(temperature, name, np.nan) for name in columns}
    return {
        column: None if np.isnan(found[name]) else round(found[name], digits)
        for name, (column, digits) in columns.items()
    }


def cases_sections(compared: Comparison, reference: Method | None, about: str) -> list[Section]:
    """Return the best, median and worst case of each method's first evaluation, where the pictures were kept.

    Args:
        compared: The methods.
        reference: The method that comes first; None: they stay in their order.
        about: What the pictures show besides the slice.
    """
    caption = f"The best, median and worst case by the DSC of the volume: the slice with the most foreground, {about}"
    sections = []
    for method in sorted(compared.methods, key=lambda method: method is not reference):
        found = {name: method.evaluations[0].picture(f"cases/{name}.png") for name in ("best", "median", "worst")}
        pictures = [
            Picture(f"{method.name}_{name}", f"{name.capitalize()} case", png)
            for name, png in found.items()
            if png is not None
        ]
        if pictures:
            sections.append(Section(f"cases_{method.name}", f"Cases: {method.label}", caption, pictures=pictures))
    return sections
