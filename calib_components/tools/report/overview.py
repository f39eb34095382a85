"""Rankings: of one comparison, by several regions, and over several data sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import kendalltau

from calib_components.errors import InputError
from calib_components.figures import rank_heat_map, rank_lines
from calib_components.tools.report.data import WITH, WITHOUT, Results, Row
from calib_components.tools.report.page import Cell, Picture, Section, to_png, write_report
from calib_components.tools.report.published import dataset_of
from calib_components.tools.report.ranks import (
    RankedCases,
    case_ranks,
    column_ranks,
    mean_case_ranks,
    means_over_common_cases,
    sum_rank,
    sum_ranks,
)
from calib_components.tools.report.readers import read_cells
from calib_components.tools.report.sections import ABOUT_REGIONS, about_intervals, mean_rows
from calib_components.tools.report.statistics import FEWEST_PATIENTS, mean_of_defined
from calib_components.tools.report.text import (
    RANKED,
    TRUSTED,
    best_marks,
    heading,
    higher_is_better,
    interval,
    listed,
    number,
)

# The paper's region first, then those that the prediction chooses, and the score of all probabilities.
BY_REGION = ("ece", "ece_predicted", "ece_plausible", "ece_all", "nll_all")
MEANS = ("dsc", "nll_all", "ece_all", "ece_predicted", "ece")
RANKINGS = {  # name in files: title, measures, temperature
    "paper": ("The paper's measures, without temperature", RANKED, WITHOUT),
    "paper_temperature": ("The paper's measures, with temperature", RANKED, WITH),
    "probabilities": ("All voxels and predicted foreground, without temperature", TRUSTED, WITHOUT),
    "probabilities_temperature": ("All voxels and predicted foreground, with temperature", TRUSTED, WITH),
}
ABOUT_RANKS = (
    "1 is best, ties share the mean rank. sum-rank: the sum of the ranks of the means, each over the cases in which "
    "all methods have a value: HD95 has none where a structure is missed or spurious. mean-case-rank: the mean of the "
    "ranks on single cases, where a method without a value ranks last. A case with nothing to find is ranked by DSC "
    "alone. 95 % intervals are over patients, of these trained networks; there is none where fewer than six patients "
    "have all values."
)


def ranked_cases(results: Results, rows: Sequence[Row], measures: Sequence[str], population: int = 0) -> RankedCases:
    """Return what rows of a test set are ranked by.

    A value that is undefined in one seed counts as undefined. Cases with nothing to find are ranked by DSC alone: a
    method that rightly finds nothing has no error of calibration in what it predicts.
    """
    nothing = np.any([results.finds_nothing(row) for row in rows], axis=0)
    values = [
        [np.where(nothing & (name != "dsc"), np.nan, results.comparable(row, name).mean(0)) for name in measures]
        for row in rows
    ]
    return RankedCases(np.swapaxes(np.array(values), 1, 2), results.patients(rows[0].test_set), population)


def rank_tables(
    datasets: Sequence[RankedCases], methods: dict[str, str], measures: Sequence[str], columns: Sequence[str]
) -> tuple[list[list[Cell]], list[dict[str, Any]], list[Picture]]:
    """Return sum-rank and mean-case-rank of each method as cells and as records, and their heat maps.

    Args:
        datasets: What they are ranked by.
        methods: Labels of the methods by name.
        measures: The measures.
        columns: Names of the columns of the heat maps: the measures of each data set.
    """
    better = [higher_is_better(measure) for measure in measures]
    of_means = [column_ranks(means_over_common_cases(dataset.values), better) for dataset in datasets]
    of_cases = [mean_of_defined(case_ranks(dataset.values, better), axis=1) for dataset in datasets]
    cells: list[list[Cell]] = [[] for _ in methods]
    records: list[dict[str, Any]] = [{"method": name} for name in methods]
    pictures = []
    for name, title, estimates, ranks, last in (
        ("sum_rank", "Ranks of the means", sum_ranks(datasets, better), of_means, "sum"),
        ("mean_case_rank", "Mean of the ranks on single cases", mean_case_ranks(datasets, better), of_cases, "mean"),
    ):
        for line, record, estimate, mark in zip(cells, records, estimates, best_marks(estimates, name), strict=True):
            line.append(Cell(number(estimate.mean, name), interval(estimate, name), mark))
            record |= {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        totals = [estimate.mean for estimate in estimates]
        figure = rank_heat_map(np.concatenate(ranks, axis=1), totals, [*methods.values()], [*columns, last])
        pictures.append(Picture(name, title, to_png(figure)))
    return cells, records, pictures


RANK_HEADINGS = ("sum-rank ↓", "mean-case-rank ↓")


def ranks_section(results: Results, measures: Sequence[str]) -> Section:
    """Return both rankings of the methods without temperature, and their heat maps."""
    measures = [measure for measure in measures if results.has(measure)]
    names, rows = [heading(measure, arrow=False) for measure in measures], results.rows(temperatures=[WITHOUT])
    methods = {row.method: results.label(row) for row in rows}
    cells, records, pictures = rank_tables([ranked_cases(results, rows, measures)], methods, measures, names)
    lines = [[Cell(label), *line] for label, line in zip(methods.values(), cells, strict=True)]
    caption = f"Without temperature, over {listed(names)}. {ABOUT_RANKS}"
    return Section("ranks", "Ranks", caption, ["", *RANK_HEADINGS], lines, records, pictures)


def calibration_ranks_section(results: Results) -> Section:
    """Return the rankings by the paper's ECE and by regions that the prediction chooses, of all test sets."""
    measures = [measure for measure in BY_REGION if results.has(measure)]
    names, better = [heading(m, arrow=False) for m in measures], [higher_is_better(m) for m in measures]
    cells, records, pictures, agreements = [], [], [], []
    for test_set in ("", *results.test_sets):
        methods = [row.method for row in results.rows(test_set, [WITH])]
        if len(methods) < 2:
            continue
        place, panels = test_set or f"own {results.about['split']}", {}
        lines = [[Cell(place), Cell(results.about["labels"][name])] for name in methods]
        for temperature in (WITHOUT, WITH):
            rows = [Row(name, temperature, test_set) for name in methods]
            means = means_over_common_cases(ranked_cases(results, rows, measures).values)
            panels[temperature] = ranks = column_ranks(means, better)
            for i, j in np.ndindex(*ranks.shape):
                lines[i].append(Cell(f"{ranks[i, j]:g}", [number(float(means[i, j]), measures[j])]))
                record = {"test_set": test_set, "method": methods[i], "temperature": temperature}
                records.append(record | {"measure": measures[j], "mean": means[i, j], "rank": ranks[i, j]})
        taus = [f"{kendalltau(of[:, 0], of[:, 1]).statistic:+.2f} {title} temperature" for title, of in panels.items()]
        agreements.append(f"{place}: {' and '.join(taus)}")
        labels = [results.about["labels"][name] for name in methods]
        figure = rank_lines({f"{title} temperature": of for title, of in panels.items()}, labels, names)
        name = "calibration_ranks" + f"_on_{test_set}" * bool(test_set)
        pictures.append(Picture(name, f"Ranks on {place}", to_png(figure)))
        cells += lines
    caption = (
        "Rank of each mean over the cases in which all have a value, 1 is best, and the mean below it. Ranks do not "
        "tell differences from chance: see the intervals above. The ground truth chooses the foreground, where an "
        "underconfident network has less of the error that even true probabilities have; the prediction chooses the "
        "other regions. Kendall's tau of the first two columns, 1 if they agree and -1 if reversed: "
        f"{'; '.join(agreements)}."
    )
    header = ["test set", "", *(f"{name}, {temperature} T" for temperature in (WITHOUT, WITH) for name in names)]
    return Section("calibration_ranks", "Rankings by calibration", caption, header, cells, records, pictures)


class Dataset(NamedTuple):
    """A test set of a comparison.

    Attributes:
        name: Name in tables and figures.
        results: The comparison that it is from.
        test_set: Its name there.
        population: Data sets with the same number have the same patients.
    """

    name: str
    results: Results
    test_set: str
    population: int

    def rows(self, methods: Sequence[str], temperature: str) -> list[Row]:
        """Return the rows of some methods."""
        rows = (Row(name, temperature, self.test_set) for name in methods)
        return [row for row in rows if row in self.results.groups]


def report_datasets(folders: Sequence[Path], out: Path = Path("report"), overwrite: bool = False) -> None:
    """Write tables and figures of several comparisons: the ranks of their methods over all data sets and test sets.

    A data set has the name of the paper's with the same structures, otherwise that of its folder. Methods are those
    that were evaluated on all.

    Raises:
        InputError: See `report_folders`; or fewer than two methods are common to all.
    """
    found = [read_cells(folder) for folder in folders]
    datasets = _datasets(folders, found)
    evaluated = [{row.method for row in d.results.rows(d.test_set, [WITHOUT])} for d in datasets]
    order = list(dict.fromkeys(name for results in found for name in results.methods))
    methods = [name for name in order if all(name in names for names in evaluated)]
    if len(methods) < 2:
        raise InputError(f"Fewer than two methods are common to all data sets: {', '.join(methods) or 'none'}.")
    labels = {name: label for results in reversed(found) for name, label in results.about["labels"].items()}
    sections, conclusions = [_means_section(datasets, methods)], []
    notices = _notices(folders, found, datasets, [labels[name] for name in order if name not in methods])
    for name, (title, measures, temperature) in RANKINGS.items():
        common = [m for m in methods if all(d.rows([m], temperature) for d in datasets)]
        if len(common) < 2 or not all(d.results.has(*measures) for d in datasets):
            notices.append(f"No ranking by {title[0].lower()}{title[1:]}: not all data sets have it of two methods.")
            continue
        section, sentence = _ranks_section(datasets, {m: labels[m] for m in common}, name)
        sections.append(section)
        conclusions.append(sentence)
    title = "Losses ranked over data sets: " + ", ".join(dataset.name for dataset in datasets)
    write_report(title, " ".join(conclusions), " ".join(notices), sections, out, overwrite=overwrite)


def _datasets(folders: Sequence[Path], found: Sequence[Results]) -> list[Dataset]:
    """Return every test set."""
    datasets: list[Dataset] = []
    for folder, results in zip(folders, found, strict=True):
        for test_set in ("", *results.test_sets):
            paper, folder_name = dataset_of(results), folder.resolve().name
            name = test_set or (paper.upper() if paper else folder_name)
            taken = [dataset.name for dataset in datasets]
            name = f"{folder_name} {name}" if name in taken else name
            if name in taken:
                raise InputError(f"Two data sets are called {name}. Rename one of the folders.")
            same = (
                d.population
                for d in datasets
                if {*d.results.patients(d.test_set)} == {*results.patients(test_set)}
                and (d.results is results or _datalist(d.results, d.test_set) == _datalist(results, test_set))
            )
            datasets.append(Dataset(name, results, test_set, next(same, len(datasets))))
    return datasets


def _datalist(results: Results, test_set: str) -> str | None:
    return results.about["datalists"].get(test_set)


def _notices(
    folders: Sequence[Path], found: Sequence[Results], datasets: Sequence[Dataset], left_out: Sequence[str]
) -> list[str]:
    """Return what a reader should know before the numbers."""
    notices = [f"Not evaluated on all, and left out: {', '.join(left_out)}."] if left_out else []
    for folder, results in zip(folders, found, strict=True):
        name = folder.resolve().name
        if results.about["missing"]:
            notices.append(f"Not finished in {name}: {'; '.join(results.about['missing'])}.")
        if results.about["split"] != "testing":
            notices.append(f"Those of {name} are cases of the {results.about['split']} split.")
    few = [d.name for d in datasets if len({*d.results.patients(d.test_set)}) < FEWEST_PATIENTS]
    if few:
        notices.append(f"Too few patients for intervals of the sum-rank: {', '.join(few)}.")
    for population, number_of in Counter(d.population for d in datasets).items():
        if number_of > 1:
            names = ", ".join(d.name for d in datasets if d.population == population)
            notices.append(f"Taken to be of the same patients, who have the same names: {names}.")
    return notices


def _means_section(datasets: Sequence[Dataset], methods: Sequence[str]) -> Section:
    """Return the means of all methods on all data sets, without and with temperature."""
    measures = [name for name in MEANS if all(dataset.results.has(name) for dataset in datasets)]
    cells, records = [], []
    for dataset in datasets:
        rows = [row for name in methods for t in (WITHOUT, WITH) for row in dataset.rows([name], t)]
        lines, of_dataset, _ = mean_rows(dataset.results, rows, measures)
        cells += [[Cell(dataset.name), *line] for line in lines]
        records += [{"dataset": dataset.name, **record} for record in of_dataset]
    caption = (
        "Mean over the cases of each data set, with its 95 % interval; the best of each is bold, the second best "
        f"underlined. + T: with temperature. {ABOUT_REGIONS}{about_intervals(datasets[0].results)}"
    )
    return Section("means", "Means", caption, ["data set", "", *map(heading, measures)], cells, records)


def _ranks_section(datasets: Sequence[Dataset], methods: dict[str, str], ranking: str) -> tuple[Section, str]:
    """Return both rankings over all data sets with their heat maps, and the sentence that names the first methods."""
    title, measures, temperature = RANKINGS[ranking]
    names, better = [heading(m, arrow=False) for m in measures], [higher_is_better(m) for m in measures]
    cases = [ranked_cases(d.results, d.rows([*methods], temperature), measures, d.population) for d in datasets]
    columns = [f"{dataset.name} {name}" for dataset in datasets for name in names]
    cells, records, pictures = rank_tables(cases, methods, measures, columns)
    lines = [[Cell(label)] for label in methods.values()]
    for dataset, of_dataset in zip(datasets, cases, strict=True):
        totals = sum_rank(means_over_common_cases(of_dataset.values), better)
        for line, record, total in zip(lines, records, totals, strict=True):
            line.append(Cell(number(total, "sum_rank")))
            record[f"sum_rank_on_{dataset.name}"] = total
    caption = f"By {listed(names)} on each data set. {ABOUT_RANKS} Columns of data sets: the part of the sum-rank."
    header = ["", *(dataset.name for dataset in datasets), *RANK_HEADINGS]
    pictures = [picture._replace(name=f"{picture.name}_{ranking}") for picture in pictures]
    shown = [[*line, *further] for line, further in zip(lines, cells, strict=True)]
    section = Section(f"ranks_{ranking}", title, caption, header, shown, records, pictures)
    order = sorted(range(len(records)), key=lambda i: records[i]["sum_rank"])[:2]
    first = [" ".join([[*methods.values()][i], cells[i][0].text, *cells[i][0].notes]) for i in order]
    return section, f"{title}: lowest sum-rank {', then '.join(first)}."
