"""Sections of the report on what one ranking hides: variation, shift, temperature, and which voxels count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from calib_components.figures import rank_lines
from calib_components.tools.compare.cell_settings import Condition
from calib_components.tools.report.measured import Method
from calib_components.tools.report.page import Picture, Section, TableCell, to_png
from calib_components.tools.report.ranks import column_ranks, means_over_common_cases
from calib_components.tools.report.results import Results, TrainedMethod
from calib_components.tools.report.sections import over_measures, ranked_cases
from calib_components.tools.report.statistics import Array, Difference, mean_of_defined, paired_difference
from calib_components.tools.report.tables import (
    DIFFERENCE,
    SIGNIFICANT,
    heading,
    higher_is_better,
    interval,
    is_told,
    number,
    p_text,
    plain_heading,
)

__all__ = ["calibration_ranks_section", "conditions_section", "variation_section"]

WITH = {False: "without", True: "with"}
VARIED = ("dsc", "hd95", "nll_all", "ece_all", "ece_predicted", "ece")
OF_SEGMENTATIONS = ("dsc", "hd95")  # a temperature leaves these as they are
COMPARED = (*OF_SEGMENTATIONS, "nll_all", "ece_all", "ece_predicted", "ece", "cece")
# The paper's region first, then those that the prediction chooses, and the score of all probabilities.
RANKED = ("ece", "ece_predicted", "ece_plausible", "ece_all", "nll_all")


def variation_section(results: Results) -> Section:
    """Return how far the means of seeds differ, and how far those of patients do, as standard deviations."""
    measures = results.measured(VARIED)
    rows, records = [], []
    for suffix, scaled in (("", False), (" + T", True)):
        for method in results.at(Condition(scaled=scaled)).methods:
            row = [TableCell(method.label + suffix)]
            for measure in measures:
                seeds, patients = _deviations(method, measure, results.patients)
                row.append(TableCell(" / ".join(_deviation(value, measure) for value in (seeds, patients))))
                record: dict[str, Any] = {"method": method.name, "temperature": "with" if scaled else "without"}
                record |= {"measure": measure, "sd_seeds": seeds, "sd_patients": patients, "seeds": len(method.runs)}
                records.append(record)
            rows.append(row)
    patients = len(set(results.patients))
    caption = (
        "Two standard deviations: of the means of the seeds / of the means of the patients. The first says how far "
        f"another training would move a mean. The second, divided by the square root of the number of patients, "
        f"{patients}, says how far others would move it."
    )
    header = ["", *(heading(measure, "foreground") for measure in measures)]
    return Section("variation", "Variation over seeds and over patients", caption, header, rows, records)


def _deviations(method: Method, measure: str, patients: Sequence[str]) -> tuple[float, float]:
    """Return the standard deviations of the means of the runs and of the patients; NaN of a single one."""
    of_runs = mean_of_defined(method.by_run(measure).T)
    values, labels = method.values(measure), np.asarray(patients)
    of_patients = np.array([float(mean_of_defined(values[labels == name])) for name in np.unique(labels)])
    return _spread(of_runs), _spread(of_patients)


def _spread(means: Array) -> float:
    """Return the standard deviation; NaN with fewer than two values."""
    defined = means[~np.isnan(means)]
    return float(np.std(defined, ddof=1)) if len(defined) > 1 else np.nan


def _deviation(value: float, measure: str) -> str:
    return number(value, measure, DIFFERENCE).removeprefix("+")


def conditions_section(results: Results, reference: TrainedMethod, test_set: str = "") -> Section:
    """Return paired differences of every method, without and with temperature, to the reference without and with its.

    Args:
        results: The results.
        reference: The method that the others are compared with, which was evaluated on the test set.
        test_set: Name of a further test set; empty for the split that is compared.
    """
    measures = results.at(Condition(test_set)).measured(COMPARED)
    rows = {
        (method.name, scaled): [TableCell(method.label + " + T" * scaled)]
        for scaled in (False, True)
        for method in results.at(Condition(test_set, scaled)).methods
    }
    records: list[dict[str, Any]] = []
    header = [""]
    for of_base in WITH:
        if not reference.at(Condition(test_set, of_base)).runs:
            continue  # not all folds have their temperature yet
        of_segmentations, of_probabilities = (
            [measure for measure in measures if (measure in OF_SEGMENTATIONS) == which] for which in (True, False)
        )
        columns = of_probabilities if of_base else [*of_segmentations, *of_probabilities]
        header += [f"{heading(measure, 'foreground')} minus {reference.label}{' + T' * of_base}" for measure in columns]
        for scaled in WITH:
            compared = results.at(Condition(test_set, scaled))
            if not compared.methods:
                continue
            others = [method for method in compared.methods if method.name != reference.name]
            itself = [method for method in compared.methods if method.name == reference.name and scaled != of_base]
            difference = partial(_difference, reference, test_set, of_base, compared.patients)
            differences = compared.corrected([] if of_base else of_segmentations, others, difference)
            differences |= compared.corrected(of_probabilities, [*others, *itself], difference)
            for measure in columns:
                cells = {method.name: TableCell("") for method in compared.methods}
                for method, (found, p_value) in differences[measure].items():
                    notes = [*interval(found, measure, DIFFERENCE), *p_text(p_value)]
                    mark = "bold" if is_told(found, p_value) else ""
                    cells[method.name] = TableCell(number(found.mean, measure, DIFFERENCE), notes, mark)
                    record = {"method": method.name, "temperature": WITH[scaled]}
                    record |= {"reference_temperature": WITH[of_base], "measure": measure}
                    records.append(record | found._asdict() | {"p_value_holm": p_value})
                for name, cell in cells.items():
                    rows[name, scaled].append(cell)
    place = test_set or f"own {results.split}"
    caption = (
        f"Minus {reference.label}, on the same cases of {place}: mean difference, its 95 % interval, over "
        f"{results.resampled} and not corrected for multiple comparisons, and the p-value of a test of the mean by "
        "changing signs of patients, Holm-corrected over the rows without, or with, temperature"
        f"{over_measures(results)}; bold if p < {SIGNIFICANT} and the interval is to one side of 0."
    )
    name = f"conditions{test_set and f'_on_{test_set}'}"
    title = f"Differences to {reference.label} without and with temperature: {place}"
    return Section(name, title, caption, header, list(rows.values()), records)


def _difference(
    reference: TrainedMethod, test_set: str, of_base: bool, patients: Sequence[str], measure: str, method: TrainedMethod
) -> Difference:
    """Return the difference of a method to the reference; of the reference itself, that of the same networks."""
    base = reference.at(Condition(test_set, of_base))
    if same := method.name == reference.name:  # of which some may lack their temperature yet
        method, base = base.at(method.runs[0].condition), method.at(Condition(test_set, of_base))
    return paired_difference(method.comparable(measure), base.comparable(measure), patients, same_runs=same)


def calibration_ranks_section(results: Results) -> Section:
    """Return the rankings by the paper's ECE and by regions that the prediction chooses, without and with temperature.

    They are those of the methods that were evaluated with a temperature, on each test set.
    """
    measures = results.measured(RANKED)
    names = [plain_heading(measure, "foreground") for measure in measures]
    rows, records, pictures, agreements = [], [], [], []
    for test_set in ("", *results.test_sets):
        scaled = results.at(Condition(test_set, scaled=True))
        if len(scaled.methods) < 2:
            continue
        place = test_set or f"own {results.split}"
        plain = replace(scaled, methods=[method.at(Condition(test_set)) for method in scaled.methods])
        lines = [[TableCell(place), TableCell(method.label)] for method in scaled.methods]
        panels = {}
        for temperature, compared in (("without", plain), ("with", scaled)):
            means = means_over_common_cases(ranked_cases(compared, measures).of_methods)
            ranks = column_ranks(means, [higher_is_better(measure) for measure in measures])
            panels[f"{temperature} temperature"] = ranks
            for method, line, of_method, ranked in zip(compared.methods, lines, means, ranks, strict=True):
                for measure, mean, rank in zip(measures, of_method, ranked, strict=True):
                    line.append(TableCell(f"{rank:g}", [number(mean, measure)]))
                    record = {"test_set": test_set, "method": method.name, "temperature": temperature}
                    records.append({**record, "measure": measure, "mean": mean, "rank": rank})
        agreement = " and ".join(f"{_agreement(ranks)} {title}" for title, ranks in panels.items())
        agreements.append(f"{place}: {agreement}")
        labels = [method.label for method in scaled.methods]
        name = f"calibration_ranks{test_set and f'_on_{test_set}'}"
        pictures.append(Picture(name, f"Ranks on {place}", to_png(rank_lines(panels, labels, names))))
        rows += lines
    caption = (
        "Rank of each mean over the cases in which all have a value, 1 is best, and the mean below it; ranks do not "
        "tell differences from chance, so see their intervals in the tables above. The ground "
        "truth chooses the foreground, where even true probabilities have an error, which an underconfident network "
        "has less of; the prediction chooses the other regions. Rank correlation (Kendall's tau) of the first two "
        "columns, 1 if they agree, -1 if one is the reverse "
        f"of the other: {'; '.join(agreements)}."
    )
    header = ["test set", "", *(f"{name}, {temperature} T" for temperature in ("without", "with") for name in names)]
    return Section("calibration_ranks", "Rankings by calibration", caption, header, rows, records, pictures)


def _agreement(ranks: Array) -> str:
    """Return Kendall's tau of the first two columns as text."""
    tau = kendalltau(ranks[:, 0], ranks[:, 1]).statistic
    return "not defined" if np.isnan(tau) else f"{tau:+.2f}"
