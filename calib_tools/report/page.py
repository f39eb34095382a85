"""The files of a report: one HTML page, the same tables as CSV, and the figures as PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from calib_components.errors import writing
from calib_tools.report.tables import Record
from calib_workflows.folders import OutputFolder

PAGE = "index.html"


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
    """A part of a report: a table, figures, or both."""

    name: str  # of its CSV file
    title: str
    caption: str
    # Of `Cell`, as it is shown; its index names the lines
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    records: Sequence[Record] | pd.DataFrame = ()  # all numbers, for the CSV file
    pictures: Sequence[Picture] = ()
    folded: bool = True  # on the page, shown when clicked alone
    lines: int | None = None  # of the table that are not folded; None for all


class Answer(NamedTuple):
    """What a report begins with: its conclusion, and what to do next, as a text and commands in
    lines.
    """

    sentences: Sequence[str]
    advice: str = ""
    command: str = ""


def to_png(figure: Figure) -> bytes:
    """Return a figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("calib_tools.report"),
    autoescape=True,
    trim_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def write_report(
    title: str,
    answer: Answer,
    notices: Sequence[str],
    sections: Sequence[Section],
    out: OutputFolder,
) -> None:
    """Write the files of a report, the page last, and print where it is and what it answers.

    Files of an earlier report are replaced, and removed where the new one lacks them. The page
    begins with the first section; what to do next stands between the sections that are shown and
    those that are folded.

    Raises:
        InputError: See `OutputFolder.claim`.
    """
    sections = [section for section in sections if section.table.size or section.pictures]
    files = _render(sections, {"title": title, "answer": answer, "notices": notices})
    with out.claim(files):
        for name, content in files.items():
            with writing(out.path / name) as file:
                file.write_bytes(content)
    print(out.path / PAGE)
    print(sections[0].table.map(str).rename_axis(None).to_string())
    print(*answer.sentences)
    if answer.advice:
        print(f"Next: {answer.advice}\n{answer.command}".strip())


def _render(sections: Sequence[Section], shown: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files of a report by name, the page last."""
    pictures = [picture for section in sections for picture in section.pictures]
    files = {f"{each.name.replace('/', '_')}.png": each.png for each in pictures}
    for section in sections:
        if len(section.records):
            table = pd.DataFrame(section.records)
            files[f"{section.name}.csv"] = table.to_csv(index=False).encode()
    page = ENVIRONMENT.get_template("page.html.jinja").render(**shown, sections=sections)
    files[PAGE] = page.encode()
    return files
