"""The report of evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from calib_components.errors import InputError, writing
from calib_tools.report import is_comparison
from calib_tools.report.calibration import structures_section, summary_section
from calib_tools.report.cases import cases_section, pictures_section
from calib_tools.report.comparison import (
    differences_section,
    means_section,
    reliability_section,
)
from calib_tools.report.conclusion import conclude
from calib_tools.report.data import Context, Results
from calib_tools.report.objects import objects_section
from calib_tools.report.paper import paper_files
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
    differences_section,
    objects_section,
    raters_section,
    reliability_section,
    cases_section,
    pictures_section,
    members_section,
    structures_section,
    means_section,
    quality_section,
    limits_section,
)
PAGE = "index.html"
FEW_PATIENTS = 30
COMPARISON = (
    "{0} holds a comparison of losses, whose report needs the repository: run python"
    " scripts/report.py {0} in a clone."
)
NARROW = "Intervals are somewhat too narrow with few patients."


def report_folders(
    *folders: Path,
    out: Path = Path("report"),
    validation: Path | None = None,
    object_threshold: str = "f1",
    paper: bool = False,
    overwrite: bool = False,
) -> None:
    """See `calib_tools.commands.report_folders`."""
    if not folders:
        raise InputError("No folder is given. Give evaluation folders.")
    for place in filter(is_comparison, folders):
        raise InputError(COMPARISON.format(place))
    if validation is not None and len(folders) > 1:
        raise InputError("--validation needs one evaluation folder.")
    results, chosen_on = read_evaluations(folders), None
    notices = [*results.notices, *size_notices(results.patients.nunique())]
    if validation is not None:
        (tested,) = results.evaluations.values()
        chosen_on, same_names = read_validation(
            validation, tested.structures, tested.summary, tested.items()
        )
        notices += same_names
    context = Context(results, chosen_on, object_threshold)
    sections = [section for make in SECTIONS if (section := make(context))]
    run = {"folders": folders, "validation": validation}
    folder = OutputFolder(out, run, overwrite=overwrite)
    further = paper_files(results) if paper else {}
    write_report(name_question(results), conclude(context), notices, sections, folder, further)


def name_question(results: Results) -> str:
    """Return the title of a page: what is asked of its evaluations."""
    first, *others = results.names
    if others:
        return f"Which is better? {', '.join(results.names)}"
    questions = {
        "objects": "How many objects are found?",
        "raters": "Does it agree with the raters?",
    }
    asked = [text for part, text in questions.items() if results.part(part) is not None]
    return " ".join([*(asked or ["Is it calibrated?"]), first])


def size_notices(patients: int) -> list[str]:
    """Return what to know of intervals over so many patients."""
    return [NARROW] if MIN_PATIENTS <= patients < FEW_PATIENTS else []


def write_report(
    title: str,
    answer: Answer,
    notes: Sequence[str],
    sections: Sequence[Section],
    out: OutputFolder,
    further: Mapping[str, bytes] | None = None,
) -> None:
    """Write the files of a report, and further ones, the page last, and print what it answers and
    where it is.

    Files of an earlier report are replaced, and removed where the new one lacks them.

    Raises:
        InputError: See `OutputFolder.claim`.
    """
    files = dict(further or {})
    for section in sections:
        for picture in section.pictures:
            files[f"{picture.name.replace('/', '_')}.png"] = picture.png
        if len(section.table):
            files[f"{section.name}.csv"] = section.as_csv().encode()
    files[PAGE] = render_page(title, answer, sections, notes).encode()
    with out.claim(files):
        (out.path / PAGE).unlink(missing_ok=True)  # where it is, the other files are of it
        for name, content in files.items():
            with writing(out.path / name) as file:
                file.write_bytes(content)
    print(*answer.sentences, sections[0].as_text(), sep="\n")
    if answer.advice:
        print(f"Next: {answer.advice}")
    print(out.path / PAGE)
