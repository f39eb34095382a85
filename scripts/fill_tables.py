"""Fill the tables of README and pages with the numbers of the reports in `results`, or check that they have them.

    python scripts/fill_tables.py [--check]

A table stands between two comments, of which the first says what is in it:

    <!-- table: results/acdc/three_seeds/report/means.csv | dsc, ece_all, ece | nacl, ce_dice | intervals -->
    <!-- end of table -->

The CSV file of a report, its measures, and, if not all, its methods; with `intervals`, each mean has its 95 % interval.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for a clone that is not installed

from calib_components.errors import InputError, reading
from calib_components.tools import cli
from calib_components.tools.compare.settings import FURTHER, PRESETS
from calib_components.tools.report.statistics import Estimate
from calib_components.tools.report.tables import heading, interval, number

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/*.md", "bundles/*/docs/README.md")
BEGIN, END = re.compile(r"<!-- table: (\S+) \| (.+) -->\n"), "<!-- end of table -->"
LABELS = {setting.name: setting.label for preset in (*PRESETS.values(), FURTHER) for setting in preset}
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
            raise InputError(f"{page}: expected <!-- table: FILE | MEASURES --> and {END}, got {part.splitlines()[0]}")
        done += begin[0] + _table(begin[1], begin[2].split(" | ")) + end + after
    return done


def _table(name: str, options: list[str]) -> str:
    """Return the table of a CSV file."""
    measures, *further = (option.split(", ") for option in options)
    chosen = [method for names in further if names != [INTERVALS] for method in names]
    with reading(ROOT / name, "a table of a report") as file, open(file, newline="") as lines:
        records = list(csv.DictReader(lines))
        is_long = "measure" in records[0]
        rows = _cells(records if is_long else _one_per_mean(records))
    rows = {row: cells for row, cells in rows.items() if row[0] in chosen or not chosen}
    lacking = [method for method in chosen if method not in {row[0] for row in rows}]
    lacking += [measure for measure in measures if any(measure not in cells for cells in rows.values())]
    if lacking:
        raise InputError(f"{name}: expected {', '.join(lacking)} in it, got none")
    headings = []
    for measure in measures:
        with_if_true = any("(" in cells[measure][0] for cells in rows.values())
        region = "foreground" * is_long + " (if true)" * with_if_true
        headings.append(heading(measure, region).removeprefix("sum_rank_on_").replace("_", "-"))
    shown = [
        [
            LABELS.get(method, method) + " + T" * scaled,
            *(" ".join(cells[m][: 1 + ([INTERVALS] in further)]) for m in measures),
        ]
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
        if measure in rows.setdefault(row, {}):
            raise ValueError(f"several means of {measure} for {row[0]}: of other test sets, say")
        rows[row][measure] = [text, *interval(estimate, digits)]
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
    cli.run("fill_tables", fill)
