"""The report of a comparison of losses: the sections of evaluations, for each test set, and
ranks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from calib_components.errors import check_choice
from calib_components.quality.ranking import BAD
from calib_tools.report.calibration import structures_section, summary_section
from calib_tools.report.cases import cases_section, pictures_section
from calib_tools.report.comparison import (
    ABOUT_COUNTS,
    ABOUT_DIFFERENCES,
    ABOUT_MEANS,
    ABOUT_REGIONS,
    COMPARED,
    compare,
    describe_differences,
    differences,
    reliability_section,
    tabulate_differences,
    tabulate_means,
)
from calib_tools.report.conclusion import describe_one
from calib_tools.report.data import Context
from calib_tools.report.report import size_notices, write_report
from calib_tools.report.statistics import MIN_PATIENTS
from calib_workflows.folders import OutputFolder
from calib_workflows.pages.numbers import (
    number,
)
from calib_workflows.pages.page import Answer, Section
from study.compare.compact import write_compact
from study.compare.data import WITH, WITHOUT, Comparison, OneTestSet, Row
from study.compare.published import PUBLISHED, dataset_of
from study.compare.ranks import ranks_sections
from study.compare.readers import read_cells
from study.compare.statistics import mean_of_defined

REFERENCE = "nacl"
TITLE = "Losses compared: {}"
# Of the split that is compared, without temperatures
SECTIONS = (structures_section, pictures_section, cases_section)
ABOUT_TEMPERATURE = (
    "+ T: logits are divided by a temperature T that was fitted on the validation split of the"
    " network. T > 1: it was overconfident there. The segmentation stays the same. "
)
ABOUT_SEEDS = (
    "With several seeds, intervals and tests are over seeds and patients (Student's t); a seed is"
    " the same for all losses. With one seed, or unequal numbers, they are over patients alone:"
    " about these trained networks, not about another training. "
)
ABOUT_SHIFT = (
    "Of other origin than the training data (shift): {}. Nothing was fitted on these cases. A"
    " network can be more wrong and surer of it there, and a temperature can help less or do harm."
)
CROSS_VALIDATION = "Cross-validation (compare_losses --folds) tests every patient."
NO_REFERENCE = "No differences: {} is not among the finished methods."
NO_SUBSTITUTE = "A lower NLL does not make up for a low DSC."
TRAIN_LONGER = (
    "Improve the segmentation: train longer, with --max_epochs. Losses without a Dice term need it"
    " most."
)
TEST_EVERY_PATIENT = "Test every patient, by cross-validation, with --folds 5."
REPEAT = "Repeat the trainings, with --seeds 0,1,2: one of each does not tell a loss from chance."
TEST_OTHERS = "Test patients of another origin, with --evaluate_on."


def report_comparison(
    folder: Path,
    out: Path = Path("report"),
    reference: str | None = None,
    compact: Path | None = None,
    overwrite: bool = False,
) -> None:
    """See `study.compare.commands.report_comparison`."""
    comparison = read_cells(folder)
    if reference is not None:
        about = comparison.about
        check_choice("--reference", reference, about.get("planned", about["labels"]))
    if compact is not None:
        write_compact(comparison, compact)
    dataset = dataset_of(comparison.structures)
    title = TITLE.format(dataset.upper() if dataset else ", ".join(comparison.structures))
    reference = reference or REFERENCE
    answer = conclude(comparison, reference)
    sections = [*make_sections(comparison, reference)]
    output = OutputFolder(out, {"folder": folder}, overwrite=overwrite)
    write_report(title, answer, make_notices(comparison), sections, output)


def make_sections(comparison: Comparison, reference: str) -> Iterator[Section]:
    """Yield the sections of the page in their order."""
    plain = Context(comparison.on("", comparison.rows("", [WITHOUT])))
    whole = {test_set: comparison.on(test_set) for test_set in comparison.test_sets}
    sections: list[Section | None] = [
        make(Context(whole[""])) for make in (summary_section, reliability_section)
    ]
    sections += [make(plain) for make in SECTIONS]
    for test_set, results in whole.items():
        sections.append(_rename(means_section(comparison, results, test_set), test_set))
    for test_set, results in whole.items():
        table = compare_rows(comparison, results, reference, test_set)
        section = tabulate_differences(table, ABOUT_DIFFERENCES + ABOUT_SEEDS)
        sections.append(_rename(section, test_set))
    sections += ranks_sections(comparison)
    yield from filter(None, sections)


def _rename(section: Section | None, test_set: str) -> Section | None:
    """Return a section with the name of its test set."""
    if section is None or not test_set:
        return section
    name, title = f"{section.name}_on_{test_set}", f"{section.title} on {test_set}"
    return replace(section, name=name, title=title)


def means_section(comparison: Comparison, results: OneTestSet, test_set: str) -> Section:
    """Return the means on a test set, with the spread over seeds and the numbers of the paper."""
    rows = tabulate_means(results).to_dict("records")
    for record in rows:
        if not comparison.has(record["measure"]):  # numbers of structures
            continue
        row = Row(record["method"], record["temperature"], record["test_set"])
        values = comparison.values(row, record["measure"])
        record["seeds"] = len(values)
        record["sd_seeds"] = float(pd.Series(mean_of_defined(values, axis=1)).std())
        record["published"] = published = find_published(comparison, row, record["measure"])
        if published is not None:
            record["note"] = f"paper {number(published, record['measure'])}"
    caption = ABOUT_MEANS.format(patients=results.count)
    if not test_set:
        caption += about_comparison(comparison)
    return Section("means", "Means", caption, pd.DataFrame(rows), ["measure"], "label")


def about_comparison(comparison: Comparison) -> str:
    """Return what a reader should know of the means of all methods."""
    parts = [ABOUT_SEEDS, ABOUT_COUNTS]
    if "ece_all" in comparison.cases:
        parts.insert(0, ABOUT_REGIONS)
    if not comparison.temperatures.empty:
        parts.insert(0, ABOUT_TEMPERATURE)
    return "".join(parts)


def find_published(comparison: Comparison, row: Row, measure: str) -> float | None:
    """Return the paper's number for a row; None if it has none."""
    place = (dataset_of(comparison.structures), row.method)
    is_published = measure in PUBLISHED and place in PUBLISHED.index
    is_tested = comparison.about.get("split") == "testing" and row == Row(row.method)
    return float(PUBLISHED.loc[place, measure]) if is_published and is_tested else None


def compare_rows(
    comparison: Comparison, results: OneTestSet, reference: str, test_set: str
) -> pd.DataFrame:
    """Return the differences of all rows to those of the reference, and of each method with its
    temperature to itself.

    P-values are corrected over the rows with the same temperatures.
    """
    measures = [measure for measure in COMPARED if results.has(measure)]
    rows = comparison.rows(test_set)
    tables = []
    for base, other in itertools.product((WITHOUT, WITH), repeat=2):
        pairs = [
            (row.name, each.name)
            for row, each in itertools.product(rows, repeat=2)
            if row.method != reference == each.method
            and (each.temperature, row.temperature) == (base, other)
        ]
        tables.append(differences(results, pairs, measures))
    tables.append(_compare_with_themselves(results, rows, measures))
    return pd.concat([table for table in tables if len(table)] or tables, ignore_index=True)


def _compare_with_themselves(
    results: OneTestSet, rows: Sequence[Row], measures: Sequence[str]
) -> pd.DataFrame:
    """Return the differences of methods with their temperature to those without."""
    scaled = [row for row in rows if row.temperature == WITH]
    pairs = [(row.name, row._replace(temperature=WITHOUT).name) for row in scaled]
    # A temperature leaves segmentations as they are
    probabilities = [measure for measure in measures if measure not in ("dsc", "hd95")]
    return differences(results, pairs, probabilities)


def conclude(comparison: Comparison, reference: str) -> Answer:
    """Return what the split that is compared says, and what to do next."""
    plain = comparison.on("", comparison.rows("", [WITHOUT]))
    if len(plain.names) == 1:
        return Answer(describe_one(plain), next_step(comparison, plain))
    if reference not in plain.names:
        return Answer([NO_REFERENCE.format(reference)])
    sentences = describe_differences(plain, compare(plain, reference), reference)
    if _segment_badly(plain):
        sentences.append(NO_SUBSTITUTE)
    return Answer(sentences, next_step(comparison, plain))


def _segment_badly(results: OneTestSet) -> list[str]:
    """Return the methods with a low mean DSC."""
    return [name for name, cases in results.cases.items() if cases["dsc"].mean() < BAD]


def next_step(comparison: Comparison, results: OneTestSet) -> str:
    """Return what to do next after a comparison; nothing if all was done."""
    if len(_segment_badly(results)) == len(results.names):
        return TRAIN_LONGER
    if comparison.patients[""].nunique() < MIN_PATIENTS:
        return TEST_EVERY_PATIENT
    if min(comparison.seeds(Row(name)) for name in comparison.labels) == 1:
        return REPEAT
    return TEST_OTHERS if len(comparison.test_sets) == 1 else ""


def make_notices(comparison: Comparison) -> list[str]:
    """Return what a reader should know before the numbers."""
    about = comparison.about
    notices: list[str] = []
    number_of_patients = min(each.nunique() for each in comparison.patients.values())
    notices += size_notices(number_of_patients)
    if number_of_patients < MIN_PATIENTS:
        notices.append(CROSS_VALIDATION)
    further: Sequence[Any] = [name for name in comparison.test_sets if name]
    if further:
        notices.append(ABOUT_SHIFT.format(", ".join(further)))
    unfinished = {
        "Not evaluated with all folds yet": about.get("unfinished_test_sets"),
        "Not finished yet": about.get("missing"),
    }
    return notices + [f"{kind}: {'; '.join(names)}." for kind, names in unfinished.items() if names]
