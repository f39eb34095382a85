"""Rankings: of one comparison, by several regions, and over several data sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
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
from calib_components.tools.report.readers import name_folders, read_cells
from calib_components.tools.report.sections import ABOUT_REGIONS, about_intervals, mean_records, row_cell, row_of
from calib_components.tools.report.statistics import FEWEST_PATIENTS, mean_of_defined
from calib_components.tools.report.text import (
    RANKED,
    TRUSTED,
    Record,
    heading,
    higher_is_better,
    listed,
    number,
    tabulate,
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
    "all methods have a value. mean-case-rank: the mean of the ranks on single cases, where a method without a value "
    "ranks last. A case with nothing to find is ranked by DSC alone. 95 % intervals are over patients, of these "
    "trained networks."
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


def ranking_section(
    name: str,
    title: str,
    datasets: Mapping[str, RankedCases],
    methods: Mapping[str, str],
    measures: Sequence[str],
) -> Section:
    """Return sum-rank and mean-case-rank of each method, and their heat maps.

    Args:
        name: Name of its CSV file.
        title: Heading.
        datasets: What methods are ranked by, by the name of the data set.
        methods: Labels of the methods by name.
        measures: The measures.
    """
    better, names = [higher_is_better(m) for m in measures], [heading(m, arrow=False) for m in measures]
    ranked, several = [*datasets.values()], len(datasets) > 1
    means = {name: means_over_common_cases(dataset.values) for name, dataset in datasets.items()}
    columns = [f"{dataset} {measure}" if several else measure for dataset in datasets for measure in names]
    records: list[dict[str, Any]] = [{"method": method} for method in methods]
    long, pictures = [], []
    for measure, caption, estimates, ranks, last in (
        ("sum_rank", "Ranks of the means", sum_ranks(ranked, better),
         [column_ranks(of, better) for of in means.values()], "sum"),
        ("mean_case_rank", "Mean of the ranks on single cases", mean_case_ranks(ranked, better),
         [mean_of_defined(case_ranks(dataset.values, better), axis=1) for dataset in ranked], "mean"),
    ):  # fmt: skip
        for record, estimate in zip(records, estimates, strict=True):
            long.append({"label": methods[record["method"]], "measure": measure, **estimate._asdict()})
            record |= {measure: estimate.mean, f"{measure}_low": estimate.low, f"{measure}_high": estimate.high}
        figure = rank_heat_map(
            np.concatenate(ranks, axis=1), [e.mean for e in estimates], [*methods.values()], [*columns, last]
        )
        pictures.append(Picture(measure + name.removeprefix("ranks"), caption, to_png(figure)))
    parts = {dataset: sum_rank(of, better) for dataset, of in means.items() if several}
    for dataset, totals in parts.items():
        for record, total in zip(records, totals, strict=True):
            record[f"sum_rank_on_{dataset}"] = total
    labels = [*methods.values()]

    def first(record: Record) -> tuple[Cell, ...]:
        totals = [of_dataset[labels.index(record["label"])] for of_dataset in parts.values()]
        return Cell(record["label"]), *(Cell(number(total, "sum_rank")) for total in totals)

    header, lines = tabulate(long, first, marked=True)
    text = f"By {listed(names)}. {ABOUT_RANKS}" + " Columns of data sets: the part of the sum-rank." * several
    return Section(name, title, text, ["", *parts, *header], lines, records, pictures)


def ranks_section(results: Results, measures: Sequence[str]) -> Section:
    """Return both rankings of the methods without temperature, and their heat maps."""
    measures, rows = [m for m in measures if results.has(m)], results.rows(temperatures=[WITHOUT])
    ranked = {"": ranked_cases(results, rows, measures)}
    title = "Ranks" + ", without temperature" * any(row.temperature == WITH for row in results.groups)
    return ranking_section("ranks", title, ranked, results.labels, measures)


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
        lines = [[Cell(place), Cell(results.labels[name])] for name in methods]
        for temperature in (WITHOUT, WITH):
            rows = [Row(name, temperature, test_set) for name in methods]
            means = means_over_common_cases(ranked_cases(results, rows, measures).values)
            panels[f"{temperature} temperature"] = ranks = column_ranks(means, better)
            for i, j in np.ndindex(*ranks.shape):
                lines[i].append(Cell(f"{ranks[i, j]:g}", [number(float(means[i, j]), measures[j])]))
                record = {"test_set": test_set, "method": methods[i], "temperature": temperature}
                records.append(record | {"measure": measures[j], "mean": means[i, j], "rank": ranks[i, j]})
        taus = [f"{kendalltau(of[:, 0], of[:, 1]).statistic:+.2f} {title}" for title, of in panels.items()]
        agreements.append(f"{place}: {' and '.join(taus)}")
        figure = rank_lines(panels, [results.labels[name] for name in methods], names)
        name = "calibration_ranks" + f"_on_{test_set}" * bool(test_set)
        pictures.append(Picture(name, f"Ranks on {place}", to_png(figure)))
        cells += lines
    caption = (
        "Rank of each mean over the cases in which all have a value, 1 is best, and the mean below it. Ranks do not "
        "tell differences from chance. The ground truth chooses the foreground, the prediction the other regions. "
        "Kendall's tau of the first two columns, 1 if they agree and -1 if reversed: "
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

    @property
    def patients(self) -> set[str]:
        """Its patients."""
        return {*self.results.patients(self.test_set)}

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
    found = dict(zip(name_folders(folders), map(read_cells, folders), strict=True))
    datasets = _datasets(found)
    evaluated = [{row.method for row in d.results.rows(d.test_set, [WITHOUT])} for d in datasets]
    labels = {name: label for results in reversed(found.values()) for name, label in results.labels.items()}
    order = list(dict.fromkeys(name for results in found.values() for name in results.methods))
    methods = [name for name in order if all(name in names for names in evaluated)]
    if len(methods) < 2:
        raise InputError(f"Fewer than two methods are common to all data sets: {', '.join(methods) or 'none'}.")
    sections, conclusions = [_means_section(datasets, methods)], []
    notices = _notices(found, datasets, [labels[name] for name in order if name not in methods])
    for name, (title, measures, temperature) in RANKINGS.items():
        common = {m: labels[m] for m in methods if all(d.rows([m], temperature) for d in datasets)}
        if len(common) < 2 or not all(d.results.has(*measures) for d in datasets):
            notices.append(f"No ranking by {title[0].lower()}{title[1:]}: not all data sets have it of two methods.")
            continue
        ranked = {
            d.name: ranked_cases(d.results, d.rows([*common], temperature), measures, d.population) for d in datasets
        }
        section = ranking_section(f"ranks_{name}", title, ranked, common, measures)
        sections.append(section)
        first = sorted(section.rows, key=lambda line: float(line[-2].text))[:2]
        texts = (" ".join([line[0].text, line[-2].text, *line[-2].notes]) for line in first)
        conclusions.append(f"{title}: lowest sum-rank {', then '.join(texts)}.")
    title = "Losses ranked over data sets: " + ", ".join(dataset.name for dataset in datasets)
    write_report(title, " ".join(conclusions), " ".join(notices), sections, out, overwrite=overwrite)


def _datasets(found: Mapping[str, Results]) -> list[Dataset]:
    """Return every test set."""
    datasets: list[Dataset] = []
    for folder, results in found.items():
        for test_set in ("", *results.test_sets):
            name = test_set or (dataset_of(results) or "").upper() or folder
            name = f"{folder} {name}" if name in [dataset.name for dataset in datasets] else name
            new = Dataset(name, results, test_set, len(datasets))
            datalist = results.about["datalists"].get(test_set)
            same = (
                d.population
                for d in datasets
                if d.patients == new.patients
                and (d.results is results or d.results.about["datalists"].get(d.test_set) == datalist)
            )
            datasets.append(new._replace(population=next(same, new.population)))
    return datasets


def _notices(found: Mapping[str, Results], datasets: Sequence[Dataset], left_out: Sequence[str]) -> list[str]:
    """Return what a reader should know before the numbers."""
    notices = [f"Not evaluated on all, and left out: {', '.join(left_out)}."] if left_out else []
    for name, results in found.items():
        if results.about["missing"]:
            notices.append(f"Not finished in {name}: {'; '.join(results.about['missing'])}.")
        if results.about["split"] != "testing":
            notices.append(f"Those of {name} are cases of the {results.about['split']} split.")
    if few := [d.name for d in datasets if len(d.patients) < FEWEST_PATIENTS]:
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

        def first(record: Record, of: Dataset = dataset) -> tuple[Cell, ...]:
            return Cell(of.name), row_cell(of.results, row_of(record))

        rows = [row for name in methods for t in (WITHOUT, WITH) for row in dataset.rows([name], t)]
        of_dataset = mean_records(dataset.results, rows, measures)
        cells += tabulate(of_dataset, first, marked=True)[1]
        records += [{"dataset": dataset.name, **record} for record in of_dataset]
    caption = (
        "Mean over the cases of each data set, with its 95 % interval; the best of each is bold, the second best "
        f"underlined. + T: with temperature. {ABOUT_REGIONS}{about_intervals(datasets[0].results)}"
    )
    return Section("means", "Means", caption, ["data set", "", *map(heading, measures)], cells, records)
