"""Rankings: of one comparison, by several regions, and over several data sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from calib_components.errors import InputError
from calib_components.tools.report.data import WITH, WITHOUT, Results, Row, dataset_of
from calib_components.tools.report.figures import rank_heat_map, rank_lines
from calib_components.tools.report.page import Cell, Picture, Section, to_png
from calib_components.tools.report.ranks import (
    RankedCases,
    case_ranks,
    mean_case_ranks,
    means_over_common_cases,
    ranks_of,
    sum_ranks,
)
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


def ranked_cases(results: Results, rows: Sequence[Row], measures: Sequence[str]) -> RankedCases:
    """Return what rows of a test set are ranked by.

    A value that is undefined in one seed counts as undefined. Cases with nothing to find are ranked by DSC alone: a
    method that rightly finds nothing has no error of calibration in what it predicts.
    """
    nothing, test_set = np.any([results.finds_nothing(row) for row in rows], axis=0), rows[0].test_set
    signs = [-1 if higher_is_better(name) else 1 for name in measures]
    values = np.array([[results.comparable(row, name).mean(0) for row in rows] for name in measures])
    costs = np.moveaxis(values, 0, 2) * signs
    costs[:, nothing] = np.where([name == "dsc" for name in measures], costs[:, nothing], np.nan)
    population = results.about.get("populations", {}).get(test_set, test_set)
    return RankedCases(costs, results.patients(test_set).tolist(), population)


def _ranked_on(results: Results) -> list[str]:
    """Return the test sets that methods are ranked on: of a comparison its own split, of joined ones all."""
    return [""] if "" in results.sets else results.sets


def ranked_methods(results: Results, temperature: str) -> list[str]:
    """Return the methods that are evaluated on all test sets that they are ranked on."""
    return [m for m in results.methods if all(Row(m, temperature, of) in results.groups for of in _ranked_on(results))]


def ranks_section(
    results: Results, measures: Sequence[str], title: str = "Ranks", name: str = "ranks", temperature: str = WITHOUT
) -> Section:
    """Return sum-rank and mean-case-rank of the methods, without or with temperature, and their heat maps."""
    sets, methods = _ranked_on(results), ranked_methods(results, temperature)
    labels, several = [results.labels[method] for method in methods], len(sets) > 1
    datasets = [ranked_cases(results, [Row(m, temperature, of) for m in methods], measures) for of in sets]
    names = [heading(measure, arrow=False) for measure in measures]
    columns = [f"{of} {measure}" if several else measure for of in sets for measure in names]
    of_means = [ranks_of(means_over_common_cases(data.costs)) for data in datasets]
    of_cases = [mean_of_defined(case_ranks(data.costs), axis=1) for data in datasets]
    records, pictures = [], []
    table = pd.DataFrame({"method": methods})
    for measure, caption, estimates, ranks, last in (
        ("sum_rank", "Ranks of the means", sum_ranks(datasets), of_means, "sum"),
        ("mean_case_rank", "Mean of the ranks on single cases", mean_case_ranks(datasets), of_cases, "mean"),
    ):
        table[[measure, f"{measure}_low", f"{measure}_high"]] = [estimate[:3] for estimate in estimates]
        records += [{"label": x, "measure": measure, **e._asdict()} for x, e in zip(labels, estimates, strict=True)]
        figure = rank_heat_map(np.concatenate(ranks, axis=1), table[measure], labels, [*columns, last])
        pictures.append(Picture(measure + name.removeprefix("ranks"), caption, to_png(figure)))
    parts = {of: ranks.sum(1) for of, ranks in zip(sets, of_means, strict=True) if several}
    for of, totals in parts.items():
        table[f"sum_rank_on_{of}"] = totals

    def first(record: Record) -> tuple[Cell, ...]:
        totals = [of_dataset[labels.index(record["label"])] for of_dataset in parts.values()]
        return Cell(record["label"]), *(Cell(number(total, "sum_rank")) for total in totals)

    header, lines = tabulate(records, first, marked=True)
    text = f"By {listed(names)}. {ABOUT_RANKS}" + " Columns of data sets: the part of the sum-rank." * several
    return Section(name, title, text, ["", *parts, *header], lines, table, pictures)


def calibration_ranks_section(results: Results) -> Section:
    """Return the rankings by the paper's ECE and by regions that the prediction chooses, of all test sets."""
    measures = [measure for measure in BY_REGION if results.has(measure)]
    names = [heading(measure, arrow=False) for measure in measures]
    cells, records, pictures, agreements = [], [], [], []
    for test_set in results.sets:
        methods = [row.method for row in results.rows(test_set, [WITH])]
        if len(methods) < 2:
            continue
        place, panels = test_set or f"own {results.about['split']}", {}
        lines = [[Cell(place), Cell(results.labels[name])] for name in methods]
        for temperature in (WITHOUT, WITH):
            rows = [Row(name, temperature, test_set) for name in methods]
            means = means_over_common_cases(ranked_cases(results, rows, measures).costs)
            panels[f"{temperature} temperature"] = ranks = ranks_of(means)
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


def join_comparisons(found: Mapping[str, Results]) -> Results:
    """Return several comparisons as one, whose test sets are all their data sets.

    A data set has the name of the paper's with the same structures, otherwise that of its folder. Methods are those
    that were evaluated on all data sets, measures those that all have.

    Raises:
        InputError: Fewer than two methods are common to all.
    """
    datasets: dict[str, tuple[Results, str]] = {}  # a comparison and its test set
    populations: dict[str, str] = {}
    for folder, results in found.items():
        for test_set in results.sets:
            name = test_set or (dataset_of(results.structures) or "").upper() or folder
            name = f"{folder} {name}" if name in datasets else name
            patients, listed_in = {*results.patients(test_set)}, results.about["datalists"].get(test_set)
            same = (
                populations[known]
                for known, (other, of) in datasets.items()
                if {*other.patients(of)} == patients
                and (other is results or other.about["datalists"].get(of) == listed_in)
            )
            populations[name] = next(same, name)
            datasets[name] = results, test_set
    labels = {name: label for results in reversed([*found.values()]) for name, label in results.labels.items()}
    order = list(dict.fromkeys(name for results in found.values() for name in results.methods))
    methods = [
        name for name in order if all(Row(name, test_set=of) in results.groups for results, of in datasets.values())
    ]
    if len(methods) < 2:
        raise InputError(f"Fewer than two methods are common to all data sets: {', '.join(methods) or 'none'}.")
    cases, fits = [], []
    for name, (results, test_set) in datasets.items():
        of_set = (results.cases["test_set"] == test_set) & results.cases["method"].isin(methods)
        cases.append(results.cases[of_set].assign(test_set=name))
        fits.append(results.temperatures.assign(test_set=name))
    common = set.intersection(*map(set, cases))
    joined = pd.concat(cases, ignore_index=True)
    joined = joined[[name for name in joined if name in common or name.startswith(("dsc_", "hd95_"))]]
    about = {
        "labels": {name: labels[name] for name in methods},
        "papers": {name: results.papers[of] for name, (results, of) in datasets.items() if of in results.papers},
        "populations": populations,
        "test_sets": {name: of for name, (_, of) in datasets.items()},
        "notices": _notices(found, [labels[name] for name in order if name not in methods]),
    }
    return Results(joined, pd.DataFrame(), pd.DataFrame(), pd.concat(fits, ignore_index=True), about)


def _notices(found: Mapping[str, Results], left_out: Sequence[str]) -> list[str]:
    """Return what a reader should know of the comparisons."""
    notices = [f"Not evaluated on all, and left out: {', '.join(left_out)}."] if left_out else []
    for name, results in found.items():
        if results.about["missing"]:
            notices.append(f"Not finished in {name}: {'; '.join(results.about['missing'])}.")
        if results.about["split"] != "testing":
            notices.append(f"Those of {name} are cases of the {results.about['split']} split.")
    return notices


def overview(joined: Results) -> tuple[list[Section], str, list[str]]:
    """Return the sections of joined comparisons, the lowest sum-ranks in words, and notices."""
    sections, conclusions, notices = [_means_section(joined)], [], list(joined.about["notices"])
    populations = joined.about["populations"]
    if few := [name for name in joined.sets if joined.patients(name).nunique() < FEWEST_PATIENTS]:
        notices.append(f"Too few patients for intervals of the sum-rank: {', '.join(few)}.")
    for population, number_of in Counter(populations.values()).items():
        if number_of > 1:
            names = ", ".join(name for name, of in populations.items() if of == population)
            notices.append(f"Taken to be of the same patients, who have the same names: {names}.")
    for name, (title, measures, temperature) in RANKINGS.items():
        if len(ranked_methods(joined, temperature)) < 2 or not joined.has(*measures):
            notices.append(f"No ranking by {title[0].lower()}{title[1:]}: not all data sets have it of two methods.")
            continue
        sections.append(section := ranks_section(joined, measures, title, f"ranks_{name}", temperature))
        first = sorted(section.rows, key=lambda line: float(line[-2].text))[:2]
        texts = (" ".join([line[0].text, line[-2].text, *line[-2].notes]) for line in first)
        conclusions.append(f"{title}: lowest sum-rank {', then '.join(texts)}.")
    return sections, " ".join(conclusions), notices


def _means_section(joined: Results) -> Section:
    """Return the means of all methods on all data sets, without and with temperature."""
    measures = [name for name in MEANS if joined.has(name)]
    cells, records = [], []

    def first(record: Record) -> tuple[Cell, ...]:
        return Cell(record["test_set"]), row_cell(joined, row_of(record))

    for name in joined.sets:
        of_dataset = mean_records(joined, joined.rows(name), measures)
        cells += tabulate(of_dataset, first, marked=True)[1]
        own_name = joined.about["test_sets"][name]
        records += [{"dataset": name, **record, "test_set": own_name} for record in of_dataset]
    caption = (
        "Mean over the cases of each data set, with its 95 % interval; the best of each is bold, the second best "
        f"underlined. + T: with temperature. {ABOUT_REGIONS}{about_intervals(joined)}"
    )
    return Section("means", "Means", caption, ["data set", "", *map(heading, measures)], cells, records)
