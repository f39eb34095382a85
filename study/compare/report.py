"""The report of a comparison of losses."""

from __future__ import annotations

from pathlib import Path

from calib_components.errors import check_choice
from calib_components.tools.report.data import Row
from calib_components.tools.report.report import write_results
from study.compare.compact import COMPACT, write_compact
from study.compare.published import PUBLISHED, dataset_of
from study.compare.ranks import ranks_sections
from study.compare.readers import read_cells

REFERENCE = "nacl"


def is_comparison(folder: Path) -> bool:
    """Return whether a folder has the results of a comparison, or their compact form."""
    names = ("plan.json", COMPACT, "*/seed*/settings.json")
    return not (folder / "cases.csv").exists() and any([*folder.glob(name)] for name in names)


def report_comparison(
    folder: Path,
    out: Path = Path("report"),
    reference: str | None = None,
    compact: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write tables and figures of a comparison of losses.

    Cells that are not finished are named and left out.

    Args:
        folder: The results folder of compare_losses, or its compact form.
        out: Folder for the report.
        reference: Method that the others are compared with; default: nacl.
        compact: Folder for a compact form of the results; default: none is written.
        overwrite: Whether `out` may hold other files.

    Raises:
        InputError: A file is missing or broken, results cannot be compared, the reference is
            unknown, or `out` holds other files or cannot be written.
    """
    found = read_cells(folder)
    if reference is not None:
        check_choice("--reference", reference, found.about["planned"])
    if compact is not None:
        write_compact(found, compact)
    data = dataset_of(found.structures)
    title = f"Losses compared: {data.upper() if data else ', '.join(found.structures)}"
    if found.about["split"] == "testing":
        found.about["published"] = {
            (Row(method), measure): PUBLISHED.loc[(data, method), measure]
            for method in found.methods
            for measure in PUBLISHED
            if (data, method) in PUBLISHED.index
        }
    reference = reference or REFERENCE
    write_results(title, found, reference, None, out, overwrite, ranks_sections(found))
