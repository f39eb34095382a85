"""The report of a comparison of losses, or of evaluations."""

from __future__ import annotations

from pathlib import Path

from calib_components.errors import InputError, check_choice
from calib_components.tools.report.calibration import REGIONS, regions_section
from calib_components.tools.report.cases import cases_section, pictures_section
from calib_components.tools.report.comparison import (
    differences,
    differences_section,
    logits_section,
    means_section,
    pairs_of,
    reliability_section,
)
from calib_components.tools.report.conclusion import conclude_differences, conclude_one
from calib_components.tools.report.data import Results, write_compact
from calib_components.tools.report.page import Answer, Section, write_report
from calib_components.tools.report.quality import quality_section
from calib_components.tools.report.ranks import ranks_sections
from calib_components.tools.report.readers import read_cells, read_evaluations
from calib_components.tools.report.statistics import FEWEST_PATIENTS, smallest_p_value
from calib_components.tools.report.structures import structures_section
from calib_components.tools.report.tables import COMPARED, SHOWN, SIGNIFICANT
from calib_components.tools.report.thresholds import thresholds_section

REFERENCE = "nacl"
FEW = 30  # patients
ABOUT_FEW = "Intervals are somewhat too narrow with few patients."
ABOUT_SHIFT = (
    "Of other origin than the training data (shift): {}. Nothing was fitted on these cases. A"
    " network can be more wrong and surer of it there, and a temperature can help less or do harm."
)


def report_folders(
    *folders: Path,
    out: Path = Path("report"),
    reference: str | None = None,
    validation: Path | None = None,
    compact: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write tables and figures of a comparison of losses, or of one or several evaluations.

    `index.html` is one page that holds all its figures and needs no network. It begins with what
    the numbers say and what to do next. `report.md` and the CSV files hold the same tables, and the
    PNG files the figures. Cells that are not finished are named and left out.

    Args:
        folders: The results folder of compare_losses, or its compact form; or one or several
            evaluation folders, which are compared on their common cases.
        out: Folder for the report.
        reference: Method, or name of the evaluation folder, that the others are compared with;
            default: nacl, or the first folder.
        validation: Evaluation folder of validation cases, on which the thresholds of one network
            are chosen; default: none are chosen.
        compact: Folder for a compact form of the results of one comparison; default: none is
            written.
        overwrite: Whether `out` may hold other files.

    Raises:
        InputError: A file is missing or broken, results cannot be compared, an option is unknown or
            does not go with these folders, or `out` holds other files or cannot be written.
    """
    if not folders:
        raise InputError(
            "No folder is given. Give results of compare_losses, or evaluation folders."
        )
    evaluations = any((folder / "cases.csv").exists() for folder in folders)
    if len(folders) > 1 and not evaluations:
        raise InputError("Give the results of one comparison, or evaluation folders.")
    if compact is not None and evaluations:
        raise InputError("--compact needs the results of a comparison.")
    if validation is not None and (not evaluations or len(folders) > 1):
        raise InputError("--validation needs one evaluation folder, to choose thresholds.")
    if evaluations:
        found = read_evaluations(folders)
        names = {label: name for name, label in found.labels.items()}
        check_choice("--reference", reference or next(iter(names)), names)
        reference = names[reference or next(iter(names))]
        title = (
            f"{'Evaluations compared:' if len(names) > 1 else 'Is it calibrated?'}"
            f" {', '.join(names)}"
        )
    else:
        found = read_cells(folders[0])
        if reference is not None:
            check_choice("--reference", reference, found.about["planned"])
        if compact is not None:
            write_compact(found, compact)
        data = found.dataset
        title = f"Losses compared: {data.upper() if data else ', '.join(found.structures)}"
    notices, ranks = _notices(found), ranks_sections(found)
    measures = SHOWN
    means = [means_section(found, measures, test_set) for test_set in found.sets]
    parts = [regions_section(found)] if found.has("ece_predicted") else []
    parts += [reliability_section(found)] if found.has("ece_all") else []
    parts.append(structures_section(found))
    parts += [pictures_section(found), cases_section(found), *means]
    answer, compared = _compared(found, reference or REFERENCE)
    parts += [*compared, *ranks]
    if len(found.evaluations) == 1 and (found.has("aurc") or validation is not None):
        section, alike = thresholds_section(found, validation)
        parts += [section, quality_section(found, validation)]
        notices += alike
    if found.about.get("magnitudes"):
        parts.append(logits_section(found))
    write_report(title, answer, notices, parts, out, overwrite)


def _compared(found: Results, reference: str) -> tuple[Answer, list[Section]]:
    """Return the answer, and the sections of differences between methods, and without and with a
    temperature.
    """
    answer, sections = (
        Answer([f"No differences: {reference} is not among the finished methods."]),
        [],
    )
    for test_set in found.sets:
        table = differences(
            found, pairs_of(found, reference, test_set), [m for m in COMPARED if found.has(m)]
        )
        sections += [differences_section(found, table, test_set)] if len(table) else []
        if not test_set and reference in found.methods and len(found.methods) > 1:
            answer = conclude_differences(found, reference, table)
    return conclude_one(found) if len(found.methods) == 1 else answer, sections


def _notices(results: Results) -> list[str]:
    """Return what a reader should know before the numbers."""
    about, number = results.about, min(results.patients(name).nunique() for name in results.sets)
    notices = list(about.get("notices", []))
    if number < FEWEST_PATIENTS:
        notices.append(
            f"{number} patient{'s' * (number != 1)}: intervals, tests and marks of the best in"
            f" tables need {FEWEST_PATIENTS}. Cross-validation (compare_losses --folds) tests every"
            " patient."
        )
    elif smallest_p_value(number, 2 * len(REGIONS)) >= SIGNIFICANT:
        notices.append(
            "Single bins are not tested: sign flips of so few patients cannot reach significance."
        )
    if FEWEST_PATIENTS <= number < FEW and results.evaluations:
        notices.append(ABOUT_FEW)
    if results.test_sets:
        notices.append(ABOUT_SHIFT.format(", ".join(results.test_sets)))
    for kind, names in (
        ("Not evaluated with all folds yet", about.get("unfinished_test_sets")),
        ("Not finished yet", about.get("missing")),
    ):
        notices += [f"{kind}: {'; '.join(names)}."] if names else []
    return notices
