"""The report of a comparison: one page, the same tables as Markdown and CSV, and the figures."""

from __future__ import annotations

from pathlib import Path

from calib_components.errors import InputError
from calib_components.tools.comparison.page import to_csv, to_html, to_markdown
from calib_components.tools.comparison.results import Results, read_results
from calib_components.tools.comparison.sections import (
    cases_sections,
    cells_section,
    differences_section,
    logits_section,
    means_section,
    ranks_section,
    reliability_section,
    structures_section,
)

__all__ = ["report"]


def report(results: Path, out: Path = Path("report"), reference: str = "nacl") -> None:
    """Write tables and figures of a comparison.

    `index.html` is one page that holds all its figures and needs no network. `report.md` and the CSV files hold the
    same tables, and the PNG files the figures. Cells that are not finished are named and left out. The same results
    give the same bytes.

    Args:
        results: Folder that compare_losses wrote.
        out: Folder for the report.
        reference: Method that the others are compared with.

    Raises:
        InputError: A file of the results is missing or broken, or the folder holds other files.
    """
    source = results.resolve()
    if out.resolve() in (source, *source.parents):
        raise InputError(f"--out: expected a folder of its own for the report, got {out}, which holds the results")
    found = read_results(results)
    title = f"Losses compared: {found.dataset.upper() if found.dataset else ', '.join(found.first.structures)}"
    base = next((method for method in found.methods if method.name == reference), None)
    sections = [means_section(found)]
    if base is not None and len(found.methods) > 1:
        sections.append(differences_section(found, base))
    sections += [ranks_section(found), reliability_section(found), logits_section(found)]
    sections += [structures_section(found), cells_section(found)]

    notice = " ".join(_notices(found, None if base else reference))
    files = {
        "index.html": to_html(title, notice, sections, cases_sections(found)).encode(),
        "report.md": to_markdown(title, notice, sections).encode(),
        **{f"{section.name}.csv": to_csv(section.records) for section in sections if section.records},
        **{f"{picture.name}.png": picture.png for section in sections for picture in section.pictures},
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"--out: expected a folder, got the file {out}") from None
    if others := sorted(path.name for path in out.iterdir() if path.name not in files):
        raise InputError(
            f"{out}: expected only files of this report, got {', '.join(others)}; move or delete them, or choose "
            "another --out"
        )
    for name, content in files.items():
        (out / name).write_bytes(content)
    print(out / "index.html")
    if notice:
        print(notice)


def _notices(results: Results, missing_reference: str | None) -> list[str]:
    """Return what a reader should know before the numbers."""
    notices = [f"Not finished yet: {'; '.join(results.missing)}."] if results.missing else []
    seeds = {method.label: ", ".join(str(cell.settings.seed) for cell in method.cells) for method in results.methods}
    if len(set(seeds.values())) > 1:
        listed = "; ".join(f"{label} {numbers}" for label, numbers in seeds.items())
        notices.append(f"Losses have different seeds, so differences and ranks are not entirely fair: {listed}.")
    if missing_reference:
        notices.append(f"There are no differences, since {missing_reference} is not finished.")
    return notices
