"""A page: an answer and sections, which one template makes one HTML file that needs no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import jinja2
import pandas as pd

from calib_workflows.pages.numbers import Cell, Record, heading, to_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = ["note", "bold", "signed", "color"]  # columns of a table that no CSV file has
NOTHING = Cell("")
EMPTY = ""  # heading of a column that names lines


class Picture(NamedTuple):
    """A figure as PNG: name of its file, title and content."""

    name: str
    title: str
    png: bytes

    @property
    def width(self) -> int:
        """Width on the page: figures are sharp on screens of high resolution."""
        return int.from_bytes(self.png[16:20], "big") * 5 // 9

    @property
    def base64(self) -> str:
        """The content as text."""
        return base64.b64encode(self.png).decode()


@dataclass(frozen=True, eq=False)
class Section:
    """A part of a page: a title, a text, one table and pictures.

    Attributes:
        name: Name of its CSV file, and of its place on the page.
        title: Its title.
        text: What to know of the table.
        table: The tidy table. Each row is one number, see `calib_workflows.pages.numbers`.
        lines: Columns of the table that name the line of a number on the page.
        column: Column of the table that names the column of a number on the page.
        pictures: Its pictures.
        folded: Whether it is shown when clicked alone.
        first: Number of lines that are not folded; None for all.
        kind: Its style, such as "card".
    """

    name: str
    title: str
    text: str = ""
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    lines: Sequence[str] = ("label",)
    column: str = "measure"
    pictures: Sequence[Picture] = ()
    folded: bool = True
    first: int | None = None
    kind: str = ""

    def grid(self) -> tuple[list[str], list[list[Cell]]]:
        """Return the headings and the lines of the page, in the order of their first numbers."""
        lines: dict[tuple[Cell, ...], dict[str, Cell]] = {}
        heads: dict[str, None] = {}
        for record in self.table.to_dict("records"):
            column, color = _shown(record, self.column), record.get("color", "")
            key = tuple(Cell(_shown(record, name), color=color) for name in self.lines)
            heads[column] = None
            cells = lines.setdefault(key, {})
            if column in cells:
                raise ValueError(f"{self.name}: {key[0]} has two numbers for {column}")
            cells[column] = to_cell(record)
        names = [EMPTY if name == "label" else name for name in self.lines]
        rows = [
            [*key, *(cells.get(column, NOTHING) for column in heads)]
            for key, cells in lines.items()
        ]
        return [*names, *heads], rows

    def as_text(self) -> str:
        """Return the table for a terminal."""
        heads, rows = self.grid()
        texts = [heads, *([str(cell) for cell in row] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
        lines = ("  ".join(map(str.rjust, line, widths)) for line in texts)
        return "\n".join(line.rstrip() for line in lines)

    def as_csv(self) -> str:
        """Return the table as a CSV file."""
        table = self.table.drop(columns=SHOWN, errors="ignore")
        return table.to_csv(index=False, lineterminator="\n")


def _shown(record: Record, entry: str) -> str:
    """Return the name of a line or column; that of a measure is its heading."""
    return heading(record[entry]) if entry == "measure" else str(record[entry])


class Answer(NamedTuple):
    """What a page begins with: its conclusion, and what to do next."""

    sentences: Sequence[str]
    advice: str = ""


def to_png(figure: Figure) -> bytes:
    """Return a figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("calib_workflows.pages"),
    autoescape=True,
    trim_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def render_page(
    title: str,
    answer: Answer,
    sections: Sequence[Section],
    notes: Sequence[str] = (),
    links: Mapping[str, str] | None = None,
) -> str:
    """Return a page.

    The answer, with what to do next, stands first, then the sections that are not folded.

    Args:
        title: Its title.
        answer: What it begins with.
        sections: Its sections.
        notes: What a reader should know of the numbers.
        links: Names of sections by the texts of links to them, at the top.
    """
    page = ENVIRONMENT.get_template("page.html.jinja")
    return page.render(
        title=title, answer=answer, sections=sections, notes=notes, links=links or {}
    )
