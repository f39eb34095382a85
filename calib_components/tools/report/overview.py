"""The report over several data sets: how methods rank over all, by the paper's measures and by probabilities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from calib_components.errors import InputError
from calib_components.tools.compare.cell_settings import Condition
from calib_components.tools.report.means import ABOUT_REGIONS, Row, mean_rows
from calib_components.tools.report.measured import WHERE_SEVERAL
from calib_components.tools.report.page import Picture, Section, TableCell
from calib_components.tools.report.published import RANKED
from calib_components.tools.report.ranks import column_ranks, means_over_common_cases
from calib_components.tools.report.report_files import DATASETS, check_outside, write_report
from calib_components.tools.report.results import Results, read_results
from calib_components.tools.report.sections import ABOUT_RANKS, RANK_HEADINGS, rank_tables, ranked_cases
from calib_components.tools.report.statistics import FEWEST_PATIENTS
from calib_components.tools.report.tables import heading, higher_is_better, number, plain_heading

__all__ = ["report_datasets"]

# Segmentation, the proper score of all probabilities, and calibration where the prediction chooses the voxels.
TRUSTED = ("dsc", "hd95", "nll_all", "ece_all", "ece_predicted")
MEANS = ("dsc", "nll_all", "ece_all", "ece_predicted", "ece")


class Ranking(NamedTuple):
    """What methods are ranked by.

    Attributes:
        name: Name in files.
        title: Title in the report.
        measures: The measures of each data set.
        scaled: Whether with temperature.
    """

    name: str
    title: str
    measures: tuple[str, ...]
    scaled: bool


RANKINGS = [
    Ranking("paper", "The paper's measures, without temperature", RANKED, False),
    Ranking("paper_temperature", "The paper's measures, with temperature", RANKED, True),
    Ranking("probabilities", "All voxels and predicted foreground, without temperature", TRUSTED, False),
    Ranking("probabilities_temperature", "All voxels and predicted foreground, with temperature", TRUSTED, True),
]


class RankedDataset(NamedTuple):
    """A test set with the methods that were evaluated on all test sets, in the same order.

    Attributes:
        name: Name in tables and figures.
        networks: Number of the results folder that its networks are from.
        population: Number of its patients: test sets that list the same ones, of a folder or of the same prepared data,
            share it.
        datalist: SHA-256 of the list of prepared cases.
        plain: Its results without temperature.
        scaled: Those with temperature.
    """

    name: str
    networks: int
    population: int
    datalist: str
    plain: Results
    scaled: Results

    def at(self, scaled: bool) -> Results:
        """Return the results without or with temperature."""
        return self.scaled if scaled else self.plain


def report_datasets(folders: Sequence[Path], out: Path = Path("report")) -> None:
    """Write tables and figures of several comparisons: the ranks of their methods over all data sets and test sets.

    A data set has the name of the paper's with the same structures, otherwise that of its folder. Methods are those
    that were evaluated on all. Files, and what holds of them, are as for `report`.

    Args:
        folders: Results folders of compare_losses.
        out: Folder for the report.

    Raises:
        InputError: A file of the results is missing or broken, there are fewer than two methods in common, or the
            folder holds other files or cannot be written.
    """
    found = [read_results(folder) for folder in folders]
    for folder, results in zip(folders, found, strict=True):
        check_outside(out, folder, results.planned)
    datasets = _datasets(folders, found)
    sections, conclusions, notices = [_means_section(datasets)], [], _notices(folders, found, datasets)
    for ranking in RANKINGS:
        if len(datasets[0].at(ranking.scaled).methods) < 2:  # all data sets have the same
            notices.append(f"No ranking by {_lower(ranking.title)}: fewer than two methods were evaluated so on all.")
        elif any(dataset.plain.measured(ranking.measures) != [*ranking.measures] for dataset in datasets):
            notices.append(f"No ranking by {_lower(ranking.title)}: not all data sets have these measures.")
        else:
            section, sentence = _ranks_section(datasets, ranking)
            sections.append(section)
            conclusions.append(sentence)
    title = DATASETS + ", ".join(dataset.name for dataset in datasets)
    write_report(title, " ".join(conclusions), " ".join(notices), [], sections, out)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _datasets(folders: Sequence[Path], found: Sequence[Results]) -> list[RankedDataset]:
    """Return every test set with the methods that all have."""
    datasets: list[RankedDataset] = []
    for networks, (folder, results) in enumerate(zip(folders, found, strict=True)):
        for test_set in ("", *results.test_sets):
            name = test_set or (results.dataset.upper() if results.dataset else folder.resolve().name)
            plain, scaled = (results.at(Condition(test_set, with_temperature)) for with_temperature in (False, True))
            settings = plain.first.settings
            datalist = settings.evaluate_on[test_set]["datalist"] if test_set else settings.datalist
            same = (
                dataset.population
                for dataset in datasets
                if {*dataset.plain.patients} == {*plain.patients}
                and (dataset.networks == networks or dataset.datalist == datalist)
            )
            population = next(same, len(datasets))
            datasets.append(RankedDataset(name, networks, population, datalist, plain, scaled))
    given = Counter(dataset.name for dataset in datasets)
    names = [
        f"{folders[dataset.networks].resolve().name} {dataset.name}" if given[dataset.name] > 1 else dataset.name
        for dataset in datasets
    ]
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise InputError(f"folders: expected other data sets or folders of other names, got {twice[0]} twice")
    methods = {
        scaled: [{method.name for method in dataset.at(scaled).methods} for dataset in datasets]
        for scaled in (False, True)
    }
    common = {scaled: set.intersection(*of_all) for scaled, of_all in methods.items()}
    if len(common[False]) < 2:
        name, fewest = min(zip(names, methods[False], strict=True), key=lambda pair: len(pair[1]))
        raise InputError(
            f"folders: expected at least two methods that all data sets have, got {len(common[False])}; {name} has "
            f"{', '.join(sorted(fewest))}"
        )
    order = list(dict.fromkeys(method.name for results in found for method in results.methods))
    return [
        dataset._replace(
            name=name,
            plain=_only(dataset.plain, order, common[False]),
            scaled=_only(dataset.scaled, order, common[True]),
        )
        for name, dataset in zip(names, datasets, strict=True)
    ]


def _only(results: Results, order: Sequence[str], chosen: set[str]) -> Results:
    of_name = {method.name: method for method in results.methods}
    return replace(results, methods=[of_name[name] for name in order if name in chosen])


def _notices(folders: Sequence[Path], found: Sequence[Results], datasets: Sequence[RankedDataset]) -> list[str]:
    """Return what a reader should know before the numbers."""
    ranked = {method.name for method in datasets[0].plain.methods}
    left_out = list(dict.fromkeys(m.label for results in found for m in results.methods if m.name not in ranked))
    notices = [f"Not evaluated on all, and left out: {', '.join(left_out)}."] if left_out else []
    for folder, results in zip(folders, found, strict=True):
        name = folder.resolve().name
        if results.missing:
            notices.append(f"Not finished in {name}: {'; '.join(results.missing)}.")
        if results.unfinished_test_sets:
            listed = ", ".join(results.unfinished_test_sets)
            notices.append(f"Not evaluated with all folds yet in {name}: {listed}.")
        if results.split != "testing":
            notices.append(f"Those of {name} are cases of the {results.split} split.")
        seeds = {m.label: ", ".join(str(run.settings.seed) for run in m.runs) for m in results.methods}
        if len(set(seeds.values())) > 1:
            listed = "; ".join(f"{label} {numbers}" for label, numbers in seeds.items())
            notices.append(f"Losses in {name} have different seeds, so ranks are not entirely fair: {listed}.")
    if few := [dataset.name for dataset in datasets if len(set(dataset.plain.patients)) < FEWEST_PATIENTS]:
        notices.append(f"Too few patients for intervals of the sum-rank: {', '.join(few)}.")
    shared = {
        dataset.population: [other.name for other in datasets if other.population == dataset.population]
        for dataset in datasets
    }
    for names in shared.values():
        if len(names) > 1:
            notices.append(f"Taken to be of the same patients, who have the same names: {', '.join(names)}.")
    return notices


def _means_section(datasets: Sequence[RankedDataset]) -> Section:
    """Return the means of all methods on all data sets, without and with temperature."""
    measures = [name for name in MEANS if all(dataset.plain.measured([name]) for dataset in datasets)]
    cells, records = [], []
    for dataset in datasets:
        rows = [
            Row(method, TableCell(method.label + suffix), {"temperature": temperature})
            for suffix, temperature, scaled in (("", "without", False), (" + T", "with", True))
            for method in dataset.at(scaled).methods
        ]
        lines, of_dataset = mean_rows(rows, measures, dataset.plain)
        cells += [[TableCell(dataset.name), *line] for line in lines]
        records += [{"dataset": dataset.name, **record} for record in of_dataset]
    caption = (
        "Mean over the cases of each data set, with its 95 % interval; the best of each is bold, the second best "
        f"underlined. {ABOUT_REGIONS if 'ece_all' in measures else ''}+ T: with temperature."
    )
    header = ["data set", "", *(heading(measure, "foreground") for measure in measures)]
    return Section("means", "Means", caption, header, cells, records)


def _ranks_section(datasets: Sequence[RankedDataset], ranking: Ranking) -> tuple[Section, str]:
    """Return both rankings over all data sets with their heat maps, and the sentence that names the first methods."""
    measures, methods = ranking.measures, datasets[0].at(ranking.scaled).methods
    names = [plain_heading(measure) for measure in measures]
    cases = [
        ranked_cases(dataset.at(ranking.scaled), measures, dataset.networks, dataset.population) for dataset in datasets
    ]
    columns = [f"{dataset.name} {name}" for dataset in datasets for name in names]
    cells, records, pictures = rank_tables(cases, methods, measures, columns)
    rows = [[TableCell(method.label)] for method in methods]
    better = [higher_is_better(measure) for measure in measures]
    for dataset, of_dataset in zip(datasets, cases, strict=True):
        totals = column_ranks(means_over_common_cases(of_dataset.of_methods), better).sum(1)
        for row, record, total in zip(rows, records, totals, strict=True):
            row.append(TableCell(number(total, "sum_rank")))
            record[f"sum_rank_on_{dataset.name}"] = total
    over = {dataset.plain.resampled for dataset in datasets}
    resampled = over.pop() if len(over) == 1 else WHERE_SEVERAL
    caption = (
        f"By {', '.join(names[:-1])} and {names[-1]} on each data set; {ABOUT_RANKS} Columns of data sets: the part of "
        f"the sum-rank. Of the last two columns: 95 % intervals, of the sum-rank over {resampled}, of the "
        "mean-case-rank over patients."
    )
    header = ["", *(dataset.name for dataset in datasets), *RANK_HEADINGS]
    pictures = [Picture(f"{name}_{ranking.name}", title, png) for name, title, png in pictures]
    rows = [[*row, *line] for row, line in zip(rows, cells, strict=True)]
    section = Section(f"ranks_{ranking.name}", ranking.title, caption, header, rows, records, pictures)
    shown: dict[float, list[str]] = {}
    for method, record, line in zip(methods, records, cells, strict=True):
        shown.setdefault(record["sum_rank"], []).append(" ".join([method.label, line[0].text, *line[0].notes]))
    lowest = [" and ".join(shown[total]) for total in sorted(shown)[:2]]
    return section, f"{ranking.title}: lowest sum-rank {', then '.join(lowest)}."
