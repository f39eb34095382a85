"""The report over several data sets: how methods rank over all, by the paper's measures and by probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from calib_components.errors import InputError
from calib_components.figures import rank_heat_map
from calib_components.tools.comparison.cell_settings import Condition
from calib_components.tools.comparison.means import ABOUT_REGIONS, Row, mean_rows
from calib_components.tools.comparison.measured import Method
from calib_components.tools.comparison.page import Picture, Section, TableCell, to_png
from calib_components.tools.comparison.published import RANKED
from calib_components.tools.comparison.ranks import (
    case_ranks,
    column_ranks,
    mean_case_rank_with_interval,
    means_over_common_cases,
    sum_rank_over_datasets,
)
from calib_components.tools.comparison.report_files import DATASETS, check_outside, write_report
from calib_components.tools.comparison.results import Results, read_results
from calib_components.tools.comparison.statistics import Estimate, mean_of_defined
from calib_components.tools.comparison.tables import (
    best_marks,
    heading,
    higher_is_better,
    interval,
    number,
    plain_heading,
)

__all__ = ["report_datasets"]

# Segmentation, the proper score of all probabilities, and calibration where the prediction chooses the voxels.
TRUSTED = ("dsc", "hd95", "nll_all", "ece_all", "ece_predicted")
MEANS = ("dsc", "nll_all", "ece_all", "ece_predicted", "ece")
WITHOUT, WITH = "without temperature", "with temperature"


class Ranking(NamedTuple):
    """What methods are ranked by.

    Attributes:
        name: Name in files.
        title: Title of its columns and figures.
        measures: The measures of each data set.
        scaled: Whether with temperature.
    """

    name: str
    title: str
    measures: tuple[str, ...]
    scaled: bool


RANKINGS = [
    Ranking("paper", f"The paper's measures, {WITHOUT}", RANKED, False),
    Ranking("paper_temperature", f"The paper's measures, {WITH}", RANKED, True),
    Ranking("probabilities", f"All voxels and predicted foreground, {WITHOUT}", TRUSTED, False),
    Ranking("probabilities_temperature", f"All voxels and predicted foreground, {WITH}", TRUSTED, True),
]


class Dataset(NamedTuple):
    """A test set with the methods that were evaluated on all test sets, in the same order.

    Attributes:
        name: Name in tables and figures.
        results: Without temperature.
        scaled: With temperature.
    """

    name: str
    results: Results
    scaled: Results

    def methods(self, scaled: bool) -> Sequence[Method]:
        """Return the methods without or with temperature."""
        return (self.scaled if scaled else self.results).methods


def report_datasets(folders: Sequence[Path], out: Path = Path("report")) -> None:
    """Write tables and figures of several comparisons: the ranks of their methods over all data sets and test sets.

    A data set has the name of the paper's with the same structures, otherwise that of its folder. Methods are those
    that were evaluated on all. Files, and what holds of them, are as for `report`.

    Args:
        folders: Results folders of compare_losses.
        out: Folder for the report.

    Raises:
        InputError: A file of the results is missing or broken, names or measures of data sets do not fit together,
            there are fewer than two methods in common, or the folder holds other files or cannot be written.
    """
    found = [read_results(folder) for folder in folders]
    for folder, results in zip(folders, found, strict=True):
        check_outside(out, folder, results.planned)
    datasets, left_out = _datasets(folders, found)
    sections = [_means_section(datasets)]
    conclusions = []
    for ranking in RANKINGS:
        if all(dataset.methods(ranking.scaled) for dataset in datasets):
            section, sentence = _ranks_section(datasets, ranking)
            sections.append(section)
            conclusions.append(sentence)
    notices = [f"Not evaluated on all, and left out: {', '.join(left_out)}."] if left_out else []
    for folder, results in zip(folders, found, strict=True):
        if results.missing:
            notices.append(f"Not finished in {folder.name}: {'; '.join(results.missing)}.")
    names = ", ".join(dataset.name for dataset in datasets)
    write_report(DATASETS + names, " ".join(conclusions), " ".join(notices), [], sections, out)


def _datasets(folders: Sequence[Path], found: Sequence[Results]) -> tuple[list[Dataset], list[str]]:
    """Return every test set with the methods that all have, and the labels of the others."""
    places: dict[str, tuple[Results, Results]] = {}
    for folder, results in zip(folders, found, strict=True):
        for test_set in ("", *results.test_sets):
            name = test_set or (results.dataset.upper() if results.dataset else folder.resolve().name)
            if name in places:
                raise InputError(f"{folder}: expected another name of the data set, got {name} twice")
            places[name] = results.at(Condition(test_set)), results.at(Condition(test_set, scaled=True))
    in_all = [set.intersection(*({m.name for m in pair[i].methods} for pair in places.values())) for i in (0, 1)]
    if len(in_all[0]) < 2:
        raise InputError(f"{folders[-1]}: expected at least two methods that all test sets have, got {len(in_all[0])}")
    labels = {method.name: method.label for results in found for method in results.methods}
    datasets = [
        Dataset(
            name, *(_only(part, [n for n in labels if n in names]) for part, names in zip(pair, in_all, strict=True))
        )
        for name, pair in places.items()
    ]
    return datasets, [label for name, label in labels.items() if name not in in_all[0]]


def _only(results: Results, names: Sequence[str]) -> Results:
    of_name = {method.name: method for method in results.methods}
    return replace(results, methods=[of_name[name] for name in names])


def _means_section(datasets: Sequence[Dataset]) -> Section:
    """Return the means of all methods on all data sets, without and with temperature."""
    measures = _measured(datasets, MEANS)
    cells, records = [], []
    for dataset in datasets:
        rows = [
            Row(method, TableCell(method.label + suffix), {"temperature": temperature})
            for suffix, temperature, scaled in (("", "without", False), (" + T", "with", True))
            for method in dataset.methods(scaled)
        ]
        lines, of_dataset = mean_rows(rows, measures, dataset.results)
        cells += [[TableCell(dataset.name), *line] for line in lines]
        records += [{"dataset": dataset.name, **record} for record in of_dataset]
    caption = (
        "Mean over the cases of each data set, with its 95 % interval; the best of each is bold, the second best "
        f"underlined. {ABOUT_REGIONS if 'ece_all' in measures else ''}+ T: with temperature."
    )
    header = ["data set", "", *(heading(measure, "foreground") for measure in measures)]
    return Section("means", "Means", caption, header, cells, records)


def _measured(datasets: Sequence[Dataset], measures: Sequence[str]) -> list[str]:
    return [name for name in measures if all(name in dataset.results.measured(measures) for dataset in datasets)]


def _ranks_section(datasets: Sequence[Dataset], ranking: Ranking) -> tuple[Section, str]:
    """Return both rankings over all data sets with their heat maps, and the sentence that names the first methods."""
    measures = _measured(datasets, ranking.measures)
    better = [higher_is_better(measure) for measure in measures]
    by_run = [
        [np.stack([method.comparable(name) for name in measures], axis=2) for method in dataset.methods(ranking.scaled)]
        for dataset in datasets
    ]
    values = [np.stack([mean_of_defined(runs) for runs in of_dataset]) for of_dataset in by_run]
    patients = [dataset.results.patients for dataset in datasets]
    of_means = [column_ranks(means_over_common_cases(of_dataset), better) for of_dataset in values]
    of_cases = [mean_of_defined(case_ranks(of_dataset, better).swapaxes(0, 1)) for of_dataset in values]
    sums = sum_rank_over_datasets(by_run, better, patients)
    everyone = [f"{d.name}/{name}" for d, names in zip(datasets, patients, strict=True) for name in names]
    averages = mean_case_rank_with_interval(np.concatenate(values, axis=1), better, everyone)
    labels = [method.label for method in datasets[0].methods(ranking.scaled)]
    rows = [[TableCell(label)] for label in labels]
    records: list[dict[str, Any]] = [{"method": m.name} for m in datasets[0].methods(ranking.scaled)]
    for dataset, ranks in zip(datasets, of_means, strict=True):
        for row, record, total in zip(rows, records, ranks.sum(1), strict=True):
            row.append(TableCell(number(total, "sum_rank")))
            record[dataset.name] = total
    for name, estimates in (("sum_rank", sums), ("mean_case_rank", averages)):
        marks = best_marks(estimates, name)
        for row, record, estimate, mark in zip(rows, records, estimates, marks, strict=True):
            row.append(TableCell(number(estimate.mean, name), interval(estimate, name), mark))
            record.update(zip((name, f"{name}_low", f"{name}_high"), estimate, strict=True))
    columns = [f"{dataset.name} {plain_heading(name)}" for dataset in datasets for name in measures]
    pictures = []
    for name, title, ranked, estimates, last in (
        ("sum_rank", "Ranks of the means", of_means, sums, "sum"),
        ("mean_case_rank", "Mean of the ranks on single cases", of_cases, averages, "mean"),
    ):
        figure = rank_heat_map(np.concatenate(ranked, axis=1), [e.mean for e in estimates], labels, [*columns, last])
        pictures.append(Picture(f"{name}_{ranking.name}", title, to_png(figure)))
    names = [plain_heading(measure) for measure in measures]
    caption = (
        f"By {', '.join(names[:-1])} and {names[-1]} on each data set; 1 is best, ties share the mean rank. In each "
        "column of a data set: the sum of its ranks of the means. The last two are over all data sets, with 95 % "
        f"intervals; sum-rank over {datasets[0].results.resampled}, mean-case-rank over patients."
    )
    header = ["", *(dataset.name for dataset in datasets), "sum-rank ↓", "mean-case-rank ↓"]
    section = Section(f"ranks_{ranking.name}", ranking.title, caption, header, rows, records, pictures)
    return section, _first(ranking, labels, sums)


def _first(ranking: Ranking, labels: Sequence[str], sums: Sequence[Estimate]) -> str:
    """Return the sentence that names the methods of lowest sum-rank."""
    order = sorted(range(len(labels)), key=lambda index: sums[index].mean)[:2]
    shown = [" ".join([labels[i], number(sums[i].mean, "sum_rank"), *interval(sums[i], "sum_rank")]) for i in order]
    return f"{ranking.title}: lowest sum-rank {shown[0]}, then {shown[1]}."
