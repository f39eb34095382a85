"""The report of evaluations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from calib_components.errors import InputError, writing
from calib_tools.report.calibration import structures_section, summary_section
from calib_tools.report.cases import cases_section, pictures_section
from calib_tools.report.comparison import (
    differences_section,
    means_section,
    reliability_section,
)
from calib_tools.report.conclusion import conclude
from calib_tools.report.data import Context
from calib_tools.report.objects import objects_section
from calib_tools.report.quality import limits_section, quality_section
from calib_tools.report.raters import members_section, raters_section
from calib_tools.report.readers import read_evaluations
from calib_tools.report.statistics import MIN_PATIENTS
from calib_tools.report.validation import read_validation
from calib_workflows.folders import OutputFolder
from calib_workflows.pages.page import Answer, Section, render_page

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
    quality_section,
    limits_section,
)
PAGE = "index.html"
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
    """See `calib_tools.commands.report_folders`."""
    if not folders:
        raise InputError("No folder is given. Give evaluation folders.")
    if validation is not None and len(folders) > 1:
        raise InputError("--validation needs one evaluation folder.")
    results = read_evaluations(folders)
    names, chosen_on = results.names, None
    notices = [*results.notices, *size_notices(results.count, results.patients.nunique())]
    if validation is not None:
        (tested,) = results.evaluations.values()
        chosen_on, same_names = read_validation(
            validation, tested.structures, tested.summary, tested.items()
        )
        notices += same_names
    context = Context(results, chosen_on, object_threshold)
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


def write_report(
    title: str,
    answer: Answer,
    notes: Sequence[str],
    sections: Sequence[Section],
    out: OutputFolder,
) -> None:
    """Write the files of a report, the page last, and print where it is and what it answers.

    Files of an earlier report are replaced, and removed where the new one lacks them.

    Raises:
        InputError: See `OutputFolder.claim`.
    """
    files = {}
    for section in sections:
        for picture in section.pictures:
            files[f"{picture.name.replace('/', '_')}.png"] = picture.png
        if len(section.table):
            files[f"{section.name}.csv"] = section.as_csv().encode()
    files[PAGE] = render_page(title, answer, sections, notes).encode()
    with out.claim(files):
        for name, content in files.items():
            with writing(out.path / name) as file:
                file.write_bytes(content)
    print(out.path / PAGE)
    print(sections[0].as_text())
    print(*answer.sentences)
    if answer.advice:
        print(f"Next: {answer.advice}")
