"""Fill the tables of README and pages with the numbers of the reports in `results`, or check that they have them.

    python scripts/fill_tables.py [--check]

A table stands between two comments, of which the first says what is in it:

    <!-- table: results/acdc/three_seeds/report/means.csv | dsc, ece_all, ece | nacl, ce_dice | intervals -->
    <!-- end of table -->

The file of means of a report, its measures, and, if not all, its methods; with `intervals`, each mean has its 95 %
interval.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for a clone that is not installed

from calib_components.errors import InputError, reading
from calib_components.tools import cli
from calib_components.tools.report.statistics import Estimate
from calib_components.tools.report.text import heading, interval, number

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/*.md", "bundles/*/docs/README.md")
BEGIN, END = re.compile(r"<!-- table: (\S+) \| (.+) -->\n"), "<!-- end of table -->"
INTERVALS = "intervals"


def fill(check: bool = False) -> None:
    """Write the tables.

    Args:
        check: Write nothing, and exit with 1 if a table differs from what would be written.
    """
    pages = {page: page.read_text() for pattern in PAGES for page in sorted(ROOT.glob(pattern))}
    filled = {page: _filled(page, text) for page, text in pages.items()}
    differing = [page for page in pages if filled[page] != pages[page]]
    for page in differing:
        if not check:
            page.write_text(filled[page])
        print(f"{page.relative_to(ROOT)}: {'differs: run scripts/fill_tables.py' if check else 'written'}")
    if check and differing:
        sys.exit(1)


def _filled(page: Path, text: str) -> str:
    """Return the text of a page with its tables."""
    done, *parts = re.split(r"(?m)^(?=<!-- table:)", text)
    for part in parts:
        begin, (_, end, after) = BEGIN.match(part), part.partition(END)
        if begin is None or not end:
            raise InputError(
                f"{page}: {part.splitlines()[0]} must be <!-- table: FILE | MEASURES --> and end with {END}."
            )
        done += begin[0] + _table(begin[1], begin[2].split(" | ")) + end + after
    return done


def _table(name: str, options: list[str]) -> str:
    """Return the table of a CSV file."""
    measures, *further = (option.split(", ") for option in options)
    chosen = [method for names in further if names != [INTERVALS] for method in names]
    with reading(ROOT / name, "the means of a report") as file:
        means = pd.read_csv(file)
    means = means[means["method"].isin(chosen) | (not chosen)].set_index(["label", "measure"])
    lacking = {*chosen} - {*means["method"]}
    lacking |= {m for m in measures for label in means.index.unique(0) if (label, m) not in means.index}
    if lacking:
        raise InputError(f"{name}: {', '.join(sorted(lacking))} is not in it.")
    lines = [[""], ["---"]]
    for measure in measures:
        has_if_true = "if_true" in means and means.xs(measure, level="measure")["if_true"].notna().any()
        lines[0].append(heading(measure).replace(" ↓", " (if true) ↓") if has_if_true else heading(measure))
        lines[1].append("---")
    for label in means.index.unique("label"):
        line = [label]
        for measure in measures:
            row = means.loc[label, measure]
            if_true = row.get("if_true", np.nan)
            notes = [] if np.isnan(if_true) else [f"({number(if_true, measure)})"]
            if [INTERVALS] in further:
                notes += interval(Estimate(row["mean"], row["low"], row["high"]), measure)
            line.append(" ".join([number(row["mean"], measure), *notes]))
        lines.append(line)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    cli.run("fill_tables", fill)
