"""Fill the tables of README and pages with the numbers of the reports in `results`, or check that they have them.

    python scripts/fill_tables.py [--check]

A table stands between two comments, of which the first says what is in it:

    <!-- table: results/acdc/table1/report/means.csv | dsc, ece_all, ece | nacl, ce_dice | intervals -->
    <!-- end of table -->

The CSV file of a report, its measures, and, if not all, its methods; with `intervals`, each mean has its 95 % interval.
Rows and columns of a file with one line per method, such as `ranks.csv`, are written in the same way.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for a clone that is not installed

from calib_components.errors import InputError, reading
from calib_components.tools import command_line
from calib_components.tools.comparison.means import OF_FOREGROUND
from calib_components.tools.comparison.settings import FURTHER, PRESETS
from calib_components.tools.comparison.statistics import Estimate
from calib_components.tools.comparison.tables import heading, interval, number

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/*.md", "bundles/*/docs/README.md")
TABLE = re.compile(r"(<!-- table: (\S+) \| (.*?) -->\n)(.*?)(?=<!-- end of table -->)", re.DOTALL)
LABELS = {setting.name: setting.label for preset in (*PRESETS.values(), FURTHER) for setting in preset}
INTERVALS = "intervals"


def fill(check: bool = False) -> None:
    """Write the tables.

    Args:
        check: Write nothing, and exit with 1 if a table differs from what would be written.

    Raises:
        InputError: A file of a report is missing or broken, or lacks a measure or a method.
    """
    differing = []
    for page in sorted(path for pattern in PAGES for path in ROOT.glob(pattern)):
        text = page.read_text()
        filled = TABLE.sub(lambda found: found[1] + _table(found[2], found[3].split(" | ")), text)
        if filled == text:
            continue
        differing.append(page)
        if not check:
            page.write_text(filled)
    for page in differing:
        print(f"{page.relative_to(ROOT)}: {'differs: run scripts/fill_tables.py' if check else 'written'}")
    if check and differing:
        sys.exit(1)


def _table(name: str, options: list[str]) -> str:
    """Return the table of a CSV file."""
    measures, *further = (option.split(", ") for option in options)
    chosen = [method for names in further if names != [INTERVALS] for method in names]
    with reading(ROOT / name, "a table of a report") as file, open(file, newline="") as lines:
        records = list(csv.DictReader(lines))
        rows = _cells(records) if "measure" in records[0] else _cells(_one_per_mean(records))
    rows = {row: cells for row, cells in rows.items() if row[0] in chosen or not chosen}
    lacking = [method for method in chosen if method not in {row[0] for row in rows}]
    lacking += [measure for measure in measures if any(measure not in cells for cells in rows.values())]
    if lacking:
        raise InputError(f"{name}: expected {', '.join(lacking)} in it, got none")
    headings = []
    for measure in measures:
        with_if_true = any("(" in cells[measure][0] for cells in rows.values())
        region = ("foreground" if measure in OF_FOREGROUND else "") + " (if true)" * with_if_true
        headings.append(heading(measure, region).replace("_", "-"))
    shown = [
        [LABELS[method] + " + T" * scaled, *(" ".join(cells[m][: 1 + ([INTERVALS] in further)]) for m in measures)]
        for (method, scaled), cells in rows.items()
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in (["", *headings], ["---"] * len(shown[0]), *shown))


def _cells(records: Iterable[Mapping[str, str]]) -> dict[tuple[str, bool], dict[str, list[str]]]:
    """Return each mean and its interval as text, by method and whether with temperature, and by measure."""
    rows: dict[tuple[str, bool], dict[str, list[str]]] = {}
    for record in records:
        measure, row = record["measure"], (record["method"], record.get("temperature") == "with")
        digits = record.get("digits_of", measure)
        estimate = Estimate(*(float(record[name]) for name in Estimate._fields))
        if_true = f" ({number(float(record['if_true']), digits)})" if record.get("if_true") else ""
        text = number(estimate.mean, digits) + if_true
        rows.setdefault(row, {})[measure] = [text, *interval(estimate, digits)]
    return rows


def _one_per_mean(records: Iterable[Mapping[str, str]]) -> Iterator[Mapping[str, str]]:
    """Give the records of a file with a line for each method as those of one with a line for each mean."""
    for record in records:
        for name, value in record.items():
            if name != "method" and not name.endswith(("_low", "_high")):
                low, high = (record.get(f"{name}{end}", "nan") for end in ("_low", "_high"))
                digits_of = name if name == "mean_case_rank" else "sum_rank"  # also of each data set
                estimate = {"mean": value, "low": low, "high": high}
                yield {"method": record["method"], "measure": name, **estimate, "digits_of": digits_of}


if __name__ == "__main__":
    command_line.run("fill_tables", fill)
