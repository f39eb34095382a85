"""The report of a comparison of losses, of several comparisons, or of evaluations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from calib_components.errors import InputError, check_choice
from calib_components.handlers.evaluation_files import Evaluation
from calib_components.tools.report import sections
from calib_components.tools.report.clinical import check_apart, choose_thresholds, clinical_sections
from calib_components.tools.report.conclusion import conclude_differences, conclude_one
from calib_components.tools.report.data import WITH, WITHOUT, Results, dataset_of, write_compact
from calib_components.tools.report.overview import (
    calibration_ranks_section,
    join_comparisons,
    overview,
    ranks_section,
)
from calib_components.tools.report.page import Section, write_report
from calib_components.tools.report.readers import name_folders, read_cells, read_evaluations
from calib_components.tools.report.statistics import FEWEST_PATIENTS
from calib_components.tools.report.text import COMPARED, RANKED, SHOWN, TRUSTED

REFERENCE = "nacl"
PICTURED = 3  # methods whose cases are shown; those of the others are folded away
SMOOTH = ("smooth_ece_all", "smooth_ece_predicted")  # shown of evaluations
FEW = 30  # patients
ABOUT_FEW = (
    "Intervals over few patients are too narrow: in simulations with 8 and 16 patients, they held the mean in 87 and "
    "92 %, that of skewed measures such as HD95 in about 78 and 83 %."
)
ABOUT_SHIFT = (
    "Of other origin than the training data (shift): {}. Nothing was fitted on these cases. A network can be more "
    "wrong and surer of it there, and a temperature can help less or do harm."
)


def report_folders(
    *folders: Path,
    out: Path = Path("report"),
    reference: str | None = None,
    validation: Path | None = None,
    compact: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write tables and figures of a comparison of losses, of several comparisons, or of evaluations.

    `index.html` is one page that holds all its figures and needs no network. `report.md` and the CSV files hold the
    same tables, and the PNG files the figures. Cells that are not finished are named and left out.

    Args:
        folders: The results folder of compare_losses, or its compact form; several of them, whose data sets are ranked
            together; or one or several evaluation folders, which are compared on their common cases.
        out: Folder for the report.
        reference: Method, or name of the evaluation folder, that the others are compared with; default: nacl, or the
            first folder. Not for several results folders, whose methods are ranked.
        validation: Evaluation folder of validation cases, on which the thresholds of one network are chosen; default:
            none are chosen.
        compact: Folder for a compact form of the results of one comparison; default: none is written.
        overwrite: Whether `out` may hold other files.

    Raises:
        InputError: A file is missing or broken, results cannot be compared, an option is unknown or does not go with
            these folders, or `out` holds other files or cannot be written.
    """
    if not folders:
        raise InputError("No folder is given. Give results of compare_losses, or evaluation folders.")
    evaluations = any((folder / "cases.csv").exists() for folder in folders)
    several = len(folders) > 1 and not evaluations
    for name, value, fits, needs in (
        ("--compact", compact, not evaluations and not several, "the results of one comparison"),
        ("--reference", reference, not several, "one results folder: methods of several are ranked"),
        ("--validation", validation, evaluations and len(folders) == 1, "one evaluation folder, to choose thresholds"),
    ):
        if value is not None and not fits:
            raise InputError(f"{name} needs {needs}.")
    if several:
        found = join_comparisons(dict(zip(name_folders(folders), map(read_cells, folders), strict=True)))
        parts, conclusion, notices = overview(found)
        title = f"Losses ranked over data sets: {', '.join(found.sets)}"
    elif evaluations:
        found = read_evaluations(folders)
        names = {label: name for name, label in found.labels.items()}
        reference = reference or next(iter(names))
        check_choice("--reference", reference, names)
        parts, conclusion, notices = _described(found, names[reference], validation)
        title = f"{'Evaluations compared:' if len(names) > 1 else 'Is it calibrated?'} {', '.join(names)}"
    else:
        found = read_cells(folders[0])
        if reference is not None:
            check_choice("--reference", reference, found.about["planned"])
        if compact is not None:
            write_compact(found, compact)
        parts, conclusion, notices = _described(found, reference or REFERENCE)
        data = dataset_of(found.structures)
        title = f"Losses compared: {data.upper() if data else ', '.join(found.structures)}"
    write_report(title, conclusion, " ".join(notices), parts, out, overwrite)


def _described(found: Results, reference: str, validation: Path | None = None) -> tuple[list[Section], str, list[str]]:
    """Return parts, conclusion and notices of methods that are compared with one of them, or of one method."""
    shown = (*SHOWN, *SMOOTH) if found.evaluations else SHOWN
    measures, notices = [measure for measure in COMPARED if found.has(measure)], _notices(found)
    parts, conclusion = [sections.means_section(found, shown, test_set) for test_set in found.sets], ""
    if any(row.temperature == WITH for row in found.groups):
        parts.append(sections.temperature_section(found, measures))
    if len(found.methods) == 1:
        conclusion = conclude_one(found)
    elif reference in found.methods:
        for test_set in found.sets:
            table = sections.differences(found, sections.reference_pairs(found, reference, test_set), measures)
            conclusion = conclusion or conclude_differences(found, reference, table)
            if len(table):
                parts.append(sections.differences_section(found, reference, table, test_set))
    else:
        notices.append(f"No differences: {reference} is not among the finished methods. Choose --reference.")
    if len(found.rows(temperatures=[WITH])) > 1:
        parts.append(calibration_ranks_section(found))
    if len(found.methods) > 1:
        ranked = TRUSTED if found.evaluations and found.has("ece_all") else RANKED
        title = "Ranks" + ", without temperature" * any(row.temperature == WITH for row in found.groups)
        parts.append(ranks_section(found, [measure for measure in ranked if found.has(measure)], title))
    if found.has("ece_all"):
        parts.append(sections.reliability_section(found))
    if found.about.get("magnitudes"):
        parts.append(sections.logits_section(found))
    parts.append(sections.structures_section(found))
    if found.evaluations:
        chosen: dict[str, float] = {}
        if validation is not None:
            fitted = Evaluation.read(validation)
            chosen, sentence = choose_thresholds(validation, fitted, found)
            conclusion += f" {sentence}" if chosen else ""
            (tested,) = found.evaluations.values()
            notices += check_apart(tested.items(), fitted.items(), validation)
        parts += clinical_sections(found, chosen)
    elif not found.cells.empty:
        parts.append(sections.cells_section(found))
    cases = sections.cases_sections(found, reference)
    folded = [replace(section, folded=True) for section in cases[PICTURED:]]
    return [*cases[:PICTURED], *parts, *folded], conclusion, notices


def _notices(results: Results) -> list[str]:
    """Return what a reader should know before the numbers."""
    about, number = results.about, results.patients().nunique()
    notices = list(about.get("notices", []))
    if number < FEWEST_PATIENTS:
        notices.append(
            f"{results.count()}: intervals, tests and marks of the best in tables need {FEWEST_PATIENTS}. "
            "Cross-validation (compare_losses --folds) tests every patient."
        )
    elif number < FEW and results.evaluations:
        notices.append(ABOUT_FEW)
    if results.test_sets:
        notices.append(ABOUT_SHIFT.format(", ".join(results.test_sets)))
    for test_set in results.test_sets:
        evaluated = [row.method for row in results.rows(test_set)]
        if lacking := [label for name, label in results.labels.items() if name not in evaluated]:
            notices.append(f"Not evaluated on {test_set}: {', '.join(lacking)}.")
    if unfinished := about.get("unfinished_test_sets"):
        notices.append(f"Not evaluated with all folds yet: {', '.join(unfinished)}.")
    if missing := about.get("missing"):
        notices.append(f"Not finished yet: {'; '.join(missing)}.")
    rows = results.rows(temperatures=[WITHOUT])
    seeds = {results.label(row): ", ".join(map(str, sorted(results.groups[row]["seed"].unique()))) for row in rows}
    if len(set(seeds.values())) > 1:
        listed = "; ".join(f"{label} {numbers}" for label, numbers in seeds.items())
        notices.append(f"Losses have different seeds, so differences and ranks are not entirely fair: {listed}.")
    return notices
