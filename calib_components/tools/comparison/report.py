"""The report of a comparison: one page, the same tables as Markdown and CSV, and the figures."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

from calib_components.errors import InputError, make_folder, nearest, reading
from calib_components.tools.comparison.cell_settings import Condition
from calib_components.tools.comparison.means import (
    means_section,
    reliability_section,
    structures_section,
    temperature_section,
)
from calib_components.tools.comparison.page import to_csv, to_html, to_markdown
from calib_components.tools.comparison.results import Results, read_results
from calib_components.tools.comparison.sections import (
    cases_sections,
    cells_section,
    differences_section,
    logits_section,
    ranks_section,
)
from calib_components.tools.comparison.statistics import FEWEST_PATIENTS

__all__ = ["report"]

PAGE, MARKDOWN = "index.html", "report.md"
OPTIONAL = ("differences.csv", "temperature.csv")  # tables that a report may lack, besides those of test sets
TITLE = "Losses compared: "  # also tells a page of ours from another's
REFERENCE = "nacl"


def report(results: Path, out: Path = Path("report"), reference: str | None = None) -> None:
    """Write tables and figures of a comparison.

    `index.html` is one page that holds all its figures and needs no network. `report.md` and the CSV files hold the
    same tables, and the PNG files the figures. Cells that are not finished are named and left out. The same results
    give the same bytes. All files are written or none; those of an earlier report are replaced.

    Args:
        results: Folder that compare_losses wrote.
        out: Folder for the report.
        reference: Method that the others are compared with; default: nacl.

    Raises:
        InputError: A file of the results is missing or broken, the reference is unknown, or the folder holds other
            files or cannot be written.
    """
    found = read_results(results)
    _check_folder(out, results, found)
    if reference is not None and reference not in found.planned:
        raise InputError(
            f"--reference: expected a method, {', '.join(found.planned)}, got {reference!r}"
            f"{nearest(reference, found.planned)}"
        )
    title = TITLE + (found.dataset.upper() if found.dataset else ", ".join(found.first.structures))
    base = next((method for method in found.methods if method.name == (reference or REFERENCE)), None)
    sections = [means_section(found), *(means_section(found, test_set) for test_set in found.test_sets)]
    if found.at(Condition(scaled=True)).methods:
        sections.append(temperature_section(found))
    if base is not None and len(found.methods) > 1:
        sections.append(differences_section(found, base))
    sections += [ranks_section(found), reliability_section(found), logits_section(found)]
    sections += [structures_section(found), cells_section(found)]

    notice = " ".join(_notices(found, None if base else reference or REFERENCE))
    files = {
        MARKDOWN: to_markdown(title, notice, sections).encode(),
        **{f"{section.name}.csv": to_csv(section.records) for section in sections if section.records},
        **{f"{picture.name}.png": picture.png for section in sections for picture in section.pictures},
        PAGE: to_html(title, notice, sections, cases_sections(found)).encode(),
    }
    _write_files(files, out)
    print(out / PAGE)
    if notice:
        print(notice)


def _check_folder(out: Path, results: Path, found: Results) -> None:
    """Check that the folder of the report is neither that of the results nor in it where cells are or will be."""
    source, target = results.resolve(), out.resolve()
    if target in (source, *source.parents):
        raise InputError(f"--out: expected a folder of its own for the report, got {out}, which holds the results")
    if source in target.parents and (name := target.relative_to(source).parts[0]) in (*found.planned, "work"):
        raise InputError(f"--out: expected a folder of its own for the report, got {out}, which is in {results / name}")


def _write_files(files: Mapping[str, bytes], out: Path) -> None:
    """Write all files or none: in a hidden folder, which becomes the report, or whose files replace those of one."""
    target = out.resolve()
    unfinished = target.with_name(f".unfinished-{target.name}")
    is_new = not target.exists()
    leftover = [] if is_new else _check_own(files, out)
    make_folder(target.parent)
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        for name, content in files.items():
            (unfinished / name).write_bytes(content)
        if is_new:
            unfinished.rename(target)
        else:
            for name in leftover:
                (target / name).unlink()
            for name in files:  # the page last
                (unfinished / name).replace(target / name)
    except OSError as error:
        raise InputError(f"{out}: expected a folder that can be written, got {error.strerror or error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _check_own(files: Mapping[str, bytes], out: Path) -> list[str]:
    """Check that a folder is empty or holds only an earlier report; return its files that this report lacks."""
    if not out.is_dir():
        raise InputError(f"--out: expected a folder, got the file {out}")
    present = sorted(out.iterdir())
    own = {*files, *OPTIONAL, *_further_files(out / MARKDOWN)}
    others = [path.name for path in present if path.name not in own or not path.is_file()]
    if present and not others:
        with reading(out / PAGE, "the page of an earlier report") as page:
            others = [] if f"<title>{TITLE}" in page.read_text(encoding="utf-8")[:1000] else [PAGE]
    if others:
        raise InputError(
            f"{out}: expected only files of this report, got {', '.join(others)}; move or delete them, or choose "
            "another --out"
        )
    return [path.name for path in present if path.name not in files]


def _further_files(markdown: Path) -> list[str]:
    """Pictures that the Markdown of an earlier report shows, and tables of its test sets; none if there is no file."""
    text = markdown.read_text(encoding="utf-8", errors="replace") if markdown.is_file() else ""
    pictures = [unquote(name) for name in re.findall(r"^!\[.*\]\((.+\.png)\)$", text, re.MULTILINE)]
    return pictures + [f"means_on_{name}.csv" for name in re.findall(r"^## Means on (.+)$", text, re.MULTILINE)]


def _notices(results: Results, missing_reference: str | None) -> list[str]:
    """Return what a reader should know before the numbers."""
    notices = []
    if (patients := len(set(results.patients))) < FEWEST_PATIENTS:
        counted = "1 patient" if patients == 1 else f"{patients} patients"
        notices.append(
            f"{counted}: too few to tell which loss is better. Intervals, tests and marks of the best need at least "
            f"{FEWEST_PATIENTS}; cross-validation (compare_losses --folds) tests every patient."
        )
    if results.test_sets:
        listed = ", ".join(results.test_sets)
        notices.append(
            f"Of other origin than the training data (shift): {listed}. Networks and temperatures are the same there, "
            "nothing was fitted on these cases. A network can be more wrong, and surer of it, than at home, and a "
            "temperature that helps at home can help less there or do harm."
        )
    for test_set in results.test_sets:
        evaluated = [method.name for method in results.at(Condition(test_set)).methods]
        if lacking := [method.label for method in results.methods if method.name not in evaluated]:
            notices.append(f"Not evaluated on {test_set}: {', '.join(lacking)}.")
    if results.missing:
        notices.append(f"Not finished yet: {'; '.join(results.missing)}.")
    seeds = {method.label: ", ".join(str(run.settings.seed) for run in method.runs) for method in results.methods}
    if len(set(seeds.values())) > 1:
        listed = "; ".join(f"{label} {numbers}" for label, numbers in seeds.items())
        notices.append(f"Losses have different seeds, so differences and ranks are not entirely fair: {listed}.")
    if missing_reference:
        why = "not finished" if missing_reference in results.planned else "not among the methods; choose --reference"
        notices.append(f"There are no differences, since {missing_reference} is {why}.")
    return notices
