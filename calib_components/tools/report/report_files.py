"""The files of a report: a page, the same tables as Markdown and CSV, and the figures."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

from calib_components.data.files import other_files
from calib_components.errors import InputError, make_folder, reading
from calib_components.tools.report.page import Section, to_csv, to_html, to_markdown

__all__ = [
    "CALIBRATED",
    "COMPARED",
    "DATASETS",
    "LOSSES",
    "OWN_FOLDER",
    "PAGE",
    "check_outside",
    "check_report_folder",
    "write_report",
]

PAGE, MARKDOWN = "index.html", "report.md"
TABLES = (  # besides those of test sets
    *("calibration_ranks", "cells", "conditions", "differences", "expected_dsc", "means", "ranks", "risk_coverage"),
    *("structures", "temperature", "thresholds", "variation", "volumes"),
)
OPTIONAL = [f"{name}.csv" for name in TABLES]
# Beginnings of titles, which also tell a report of ours from another's.
LOSSES, DATASETS = "Losses compared: ", "Losses ranked over data sets: "
COMPARED, CALIBRATED = "Evaluations compared: ", "Is it calibrated? "
TITLES = (LOSSES, DATASETS, COMPARED, CALIBRATED)
PICTURED = 3  # methods whose cases are shown; those of the others are folded away
OWN_FOLDER = "--out: expected a folder of its own for the report"


def write_report(
    title: str, conclusion: str, notice: str, cases: Sequence[Section], sections: Sequence[Section], out: Path
) -> None:
    """Write the files and print where.

    `index.html` is one page that holds all its figures and needs no network. `report.md` and the CSV files hold the
    same tables, and the PNG files the figures; pictures of cases are in the page alone. A new report appears as a
    whole; the files of an earlier one are replaced once all are made, the page last.

    Args:
        title: Title of the page.
        conclusion: What the page begins with.
        notice: Text that stands out below it.
        cases: Pictures of cases, the first of which come before the other sections, and the rest folded at the end.
        sections: The other sections.
        out: Folder for the report.

    Raises:
        InputError: The folder holds other files, or cannot be written.
    """
    shown, folded = [*cases[:PICTURED], *sections], cases[PICTURED:]
    files = {
        MARKDOWN: to_markdown(title, conclusion, notice, sections).encode(),
        **{f"{section.name}.csv": to_csv(section.records) for section in sections if section.records},
        **{f"{picture.name}.png": picture.png for section in sections for picture in section.pictures},
        PAGE: to_html(title, conclusion, notice, shown, folded).encode(),
    }
    _write_files(files, out)
    print(out / PAGE)
    for text in (conclusion, notice):
        if text:
            print(text)


def check_outside(out: Path, results: Path, planned: Collection[str]) -> None:
    """Check that the folder of the report is neither that of the results nor in it where cells are or will be.

    Args:
        out: Folder for the report.
        results: Results folder of compare_losses.
        planned: Names of its methods.

    Raises:
        InputError: It is.
    """
    source, target = results.resolve(), out.resolve()
    if target in (source, *source.parents):
        raise InputError(f"{OWN_FOLDER}, got {out}, which holds the results")
    if source in target.parents and (name := target.relative_to(source).parts[0]) in (*planned, "work"):
        raise InputError(f"{OWN_FOLDER}, got {out}, which is in {results / name}")


def _write_files(files: Mapping[str, bytes], out: Path) -> None:
    """Write all files into a hidden folder, which becomes the report, or whose files then replace those of one."""
    leftover = check_report_folder(out, files)
    target = out.resolve()
    unfinished = target.with_name(f".unfinished-{target.name}")
    is_new = not target.exists()
    make_folder(target.parent)
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        for name, content in files.items():
            (unfinished / name).write_bytes(content)
        if is_new:
            unfinished.rename(target)
        else:
            first = [name for name in files if name not in (MARKDOWN, PAGE)]
            for name in first:
                (unfinished / name).replace(target / name)
            for name in leftover:  # before the Markdown, which names them
                (target / name).unlink()
            for name in (MARKDOWN, PAGE):
                (unfinished / name).replace(target / name)
    except OSError as error:
        raise InputError(f"{out}: expected a folder that can be written, got {error.strerror or error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def check_report_folder(out: Path, files: Collection[str] = ()) -> list[str]:
    """Check that there is no such folder yet, or that it is empty or holds only an earlier report.

    Args:
        out: The folder.
        files: Names of the files of the new report.

    Returns:
        The files in the folder that the new report lacks.

    Raises:
        InputError: It is a file, or holds something else.
    """
    if not out.exists():
        return []
    if not out.is_dir():
        raise InputError(f"--out: expected a folder, got the file {out}")
    present = other_files(out, ())
    own = {PAGE, MARKDOWN, *files, *OPTIONAL, *_further_files(out / MARKDOWN)}
    others = [name for name in present if name not in own or not (out / name).is_file()]
    if present and not others:
        name, mark = (PAGE, "<title>") if (out / PAGE).exists() else (MARKDOWN, "# ")  # the page comes last
        with reading(out / name, "an earlier report") as file:
            head = file.read_text(encoding="utf-8")[:1000]
            others = [] if any(f"{mark}{title}" in head for title in TITLES) else [name]
    if others:
        raise InputError(
            f"{out}: expected only files of this report, got {', '.join(others)}; move or delete them, or choose "
            "another --out"
        )
    return [name for name in present if name not in files]


def _further_files(markdown: Path) -> list[str]:
    """Pictures that the Markdown of an earlier report shows, and tables that it names; none if there is no file."""
    text = markdown.read_text(encoding="utf-8", errors="replace") if markdown.is_file() else ""
    pictures = [unquote(name) for name in re.findall(r"^!\[.*\]\((.+\.png)\)$", text, re.MULTILINE)]
    rankings = [f"ranks_{name}.csv" for name in re.findall(r"\(sum_rank_(\w+)\.png\)$", text, re.MULTILINE)]
    test_sets = re.findall(r"^## Means on (.+)$", text, re.MULTILINE)
    of_test_sets = [f"{table}_on_{name}.csv" for table in ("conditions", "means") for name in test_sets]
    return [*pictures, *rankings, *of_test_sets]
