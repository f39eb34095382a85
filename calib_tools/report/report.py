"""The report of evaluations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from calib_components.errors import InputError
from calib_tools.report import is_comparison
from calib_tools.report.calibration import summary_section
from calib_tools.report.cases import cases_section, pictures_section
from calib_tools.report.comparison import (
    compare,
    differences_section,
    means_section,
    reliability_section,
)
from calib_tools.report.conclusion import conclude
from calib_tools.report.data import Context
from calib_tools.report.objects import objects_section
from calib_tools.report.page import Section, write_report
from calib_tools.report.quality import limits_section, quality_section
from calib_tools.report.raters import members_section, raters_section
from calib_tools.report.readers import read_evaluations
from calib_tools.report.statistics import MIN_PATIENTS
from calib_tools.report.structures import structures_section
from calib_tools.report.thresholds import read_validation, thresholds_section
from calib_workflows.folders import OutputFolder

# All sections of a page, in their order: first those that are not folded. One that does not apply
# returns None.
SECTIONS: Sequence[Callable[[Context], Section | None]] = (
    summary_section,
    reliability_section,
    raters_section,
    objects_section,
    cases_section,
    pictures_section,
    members_section,
    structures_section,
    differences_section,
    means_section,
    thresholds_section,
    quality_section,
    limits_section,
)
FEW_PATIENTS = 30
TOO_FEW = "{patients}: intervals and tests need at least {minimum} patients."
NARROW = "Intervals are somewhat too narrow with few patients."


def report_folders(
    *folders: Path,
    out: Path = Path("report"),
    validation: Path | None = None,
    object_threshold: str = "f1",
    overwrite: bool = False,
) -> None:
    """Write tables and figures of one or several evaluations.

    `index.html` is one page that holds all its figures and needs no network. It begins with what
    the numbers say and what to do next. CSV files hold the same tables, and PNG files the figures.

    Args:
        folders: One or several evaluation folders, which are compared with the first one on their
            common cases.
        out: Folder for the report.
        validation: Evaluation folder of validation cases, on which the thresholds of one network
            are chosen; default: none are chosen.
        object_threshold: For what the threshold of the confidence of objects is chosen: `f1`, at
            most K false candidates a scan (`false=K`), or a recall of at least R (`recall=R`).
        overwrite: Whether a report of other folders in `out` is replaced.

    Raises:
        InputError: A file is missing or broken, evaluations cannot be compared, an option is
            unknown or does not go with these folders, or `out` holds another report or cannot be
            written.
    """
    if not folders:
        raise InputError("No folder is given. Give evaluation folders.")
    if compared := [*filter(is_comparison, folders)]:
        raise InputError(
            f"{compared[0]} is a comparison of losses. Its report needs a clone of the repository:"
            f" python scripts/report.py {compared[0]}"
        )
    if validation is not None and len(folders) > 1:
        raise InputError("--validation needs one evaluation folder, to choose thresholds.")
    results = read_evaluations(folders)
    names, chosen_on = results.names, None
    notices = [*results.notices, *size_notices(results.count, results.patients.nunique())]
    if validation is not None:
        (tested,) = results.evaluations.values()
        chosen_on, same_names = read_validation(
            validation, tested.structures, tested.summary, tested.items()
        )
        notices += same_names
    context = Context(results, names[0], compare(results, names[0]), chosen_on, object_threshold)
    title = f"Is it calibrated? {names[0]}"
    if len(names) > 1:
        title = f"{len(names)} evaluations compared"
    sections = [section for make in SECTIONS if (section := make(context))]
    run = {"folders": folders, "validation": validation}
    folder = OutputFolder(out, run, overwrite=overwrite)
    write_report(title, conclude(context), notices, sections, folder)


def size_notices(count: str, patients: int) -> list[str]:
    """Return what so few patients do not allow."""
    if patients < MIN_PATIENTS:
        return [TOO_FEW.format(patients=count, minimum=MIN_PATIENTS)]
    return [NARROW] if patients < FEW_PATIENTS else []
