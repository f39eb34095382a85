"""The report of evaluations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from calib_components.errors import InputError, check_choice
from calib_components.tools.report.calibration import REGIONS, regions_section
from calib_components.tools.report.cases import cases_section, pictures_section
from calib_components.tools.report.comparison import (
    compare,
    differences_section,
    means_section,
    reliability_section,
)
from calib_components.tools.report.conclusion import conclude_one, conclude_several
from calib_components.tools.report.data import Context
from calib_components.tools.report.page import Section, write_report
from calib_components.tools.report.quality import quality_section
from calib_components.tools.report.readers import read_evaluations
from calib_components.tools.report.statistics import MIN_PATIENTS, smallest_p_value
from calib_components.tools.report.structures import structures_section
from calib_components.tools.report.tables import SIGNIFICANT
from calib_components.tools.report.thresholds import read_validation, thresholds_section

# All sections of a page, in their order. One that does not apply returns None.
SECTIONS: Sequence[Callable[[Context], Section | None]] = (
    regions_section,
    reliability_section,
    structures_section,
    pictures_section,
    cases_section,
    means_section,
    differences_section,
    thresholds_section,
    quality_section,
)
FEW_PATIENTS = 30
TOO_FEW = (
    "{patients}: intervals, tests and marks of the best in tables need at least {minimum} patients."
)
NO_BINS = "Single bins are not tested: sign flips of so few patients cannot reach significance."
NARROW = "Intervals are somewhat too narrow with few patients."


def report_folders(
    *folders: Path,
    out: Path = Path("report"),
    reference: str | None = None,
    validation: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write tables and figures of one or several evaluations.

    `index.html` is one page that holds all its figures and needs no network. It begins with what
    the numbers say and what to do next. `report.md` and the CSV files hold the same tables, and the
    PNG files the figures.

    Args:
        folders: One or several evaluation folders, which are compared on their common cases.
        out: Folder for the report.
        reference: Name of the evaluation folder that the others are compared with; default: the
            first folder.
        validation: Evaluation folder of validation cases, on which the thresholds of one network
            are chosen; default: none are chosen.
        overwrite: Whether `out` may hold other files.

    Raises:
        InputError: A file is missing or broken, evaluations cannot be compared, an option is unknown
            or does not go with these folders, or `out` holds other files or cannot be written.
    """
    if not folders:
        raise InputError("No folder is given. Give evaluation folders.")
    if validation is not None and len(folders) > 1:
        raise InputError("--validation needs one evaluation folder, to choose thresholds.")
    results = read_evaluations(folders)
    names = {label: name for name, label in results.labels.items()}
    label = reference or next(iter(names))
    check_choice("--reference", label, names)
    table, chosen_on = compare(results, names[label]), None
    notices = [*results.notices, *size_notices(results.count, results.patients.nunique())]
    if validation is not None:
        chosen_on, same_names = read_validation(results, validation)
        notices += same_names
    context = Context(results, names[label], table, chosen_on)
    if len(names) == 1:
        title, answer = f"Is it calibrated? {label}", conclude_one(results)
    else:
        title, answer = f"Evaluations compared: {', '.join(names)}", conclude_several(context)
    sections = [section for make in SECTIONS if (section := make(context))]
    write_report(title, answer, notices, sections, out, overwrite)


def size_notices(count: str, patients: int) -> list[str]:
    """Return what so few patients do not allow."""
    notices = []
    if patients < MIN_PATIENTS:
        notices.append(TOO_FEW.format(patients=count, minimum=MIN_PATIENTS))
    elif smallest_p_value(patients, 2 * len(REGIONS)) >= SIGNIFICANT:
        notices.append(NO_BINS)
    if MIN_PATIENTS <= patients < FEW_PATIENTS:
        notices.append(NARROW)
    return notices
