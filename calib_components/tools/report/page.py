"""A report as HTML, Markdown and CSV: sections of tables and pictures."""

from __future__ import annotations

import base64
import csv
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

from matplotlib.figure import Figure

__all__ = ["Picture", "Section", "TableCell", "to_csv", "to_html", "to_markdown", "to_png"]


class TableCell(NamedTuple):
    """A cell of a table: its text, smaller notes below it, and whether it is "bold" or "underlined"."""

    text: str
    notes: Sequence[str] = ()
    mark: str = ""


class Picture(NamedTuple):
    """A figure as PNG."""

    name: str
    title: str
    png: bytes


@dataclass(frozen=True)
class Section:
    """A part of the report: a table with its numbers as records for the file `NAME.csv`, figures, or both."""

    name: str
    title: str
    caption: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[TableCell]] = ()
    records: Sequence[Mapping[str, Any]] = ()
    pictures: Sequence[Picture] = ()


def to_png(figure: Figure) -> bytes:
    """Return a figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def to_csv(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a header and a line for each record, with an empty field for what it lacks."""
    buffer = io.StringIO(newline="")
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue().encode()


def _escaped(text: str) -> str:
    """Return text as Markdown that shows it: a name from a file is neither HTML nor a link."""
    return re.sub("<(?=[a-zA-Z/!?])", "&lt;", text).replace("](", r"]\(")


def _escaped_in_table(text: str) -> str:
    return _escaped(text).replace("|", r"\|")


def to_markdown(title: str, conclusion: str, notice: str, sections: Sequence[Section]) -> str:
    """Return the tables, with links to the figures. Arguments as in `to_html`."""
    parts = [f"# {_escaped(title)}", *([_escaped(conclusion)] if conclusion else [])]
    parts += [f"> {_escaped(notice)}"] if notice else []
    for section in sections:
        parts += [f"## {_escaped(section.title)}", _escaped(section.caption)]
        if section.rows:
            lines = [[_escaped_in_table(name) for name in section.header], ["---"] * len(section.header)]
            lines += [[_cell_markdown(cell) for cell in row] for row in section.rows]
            parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        for picture in section.pictures:
            title = _escaped(picture.title)
            parts += [f"*{title}*", f"![{_escaped(section.title)}: {title}]({quote(picture.name)}.png)"]
    return "\n\n".join(parts) + "\n"


def _cell_markdown(cell: TableCell) -> str:
    text = _escaped_in_table(cell.text)
    text = {"bold": f"**{text}**", "underlined": f"<ins>{text}</ins>"}.get(cell.mark, text)
    return "<br>".join([text, *map(_escaped_in_table, cell.notes)])


WIDE = 600  # pixels below which a wider picture is not shrunk: its box scrolls instead

STYLE = """
body { max-width: 84rem; margin: 2rem auto; padding: 0 1rem; color: #222; font: 16px/1.45 system-ui, sans-serif; }
body { overflow-wrap: break-word; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
.caption { max-width: 48rem; color: #555; font-size: 0.9rem; }
.conclusion { max-width: 60rem; font-size: 1.15rem; }
.notice { padding: 0.5rem 1rem; border-left: 4px solid #d55e00; background: #fdf3ec; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 0.5rem 0.35rem 0; text-align: left; vertical-align: top; white-space: nowrap; }
thead th { border-bottom: 2px solid #222; vertical-align: bottom; white-space: normal; }
tbody tr { border-bottom: 1px solid #ddd; }
td small { display: block; color: #666; font-size: 0.75rem; line-height: 1.3; }
.bold { font-weight: 700; } .underlined { text-decoration: underline; }
img { max-width: 100%; height: auto; }
figure { display: inline-block; max-width: 100%; margin: 1rem 1rem 0 0; overflow-x: auto; }
figcaption { font-weight: 600; font-size: 0.9rem; }
summary { margin: 1rem 0 0; cursor: pointer; font-weight: 700; }
"""


def to_html(
    title: str, conclusion: str, notice: str, sections: Sequence[Section], folded: Sequence[Section] = ()
) -> str:
    """Return one page that holds all figures and needs no network.

    Args:
        title: Title of the page.
        conclusion: What the page begins with; nothing if empty.
        notice: Text that stands out below it; none if empty.
        sections: Sections to show.
        folded: Sections to show when clicked.
    """
    title = html.escape(title)
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f'<head>\n<meta charset="utf-8">\n<title>{title}</title>\n{viewport}\n<style>{STYLE}</style>\n</head>'
    parts = [f'<!DOCTYPE html>\n<html lang="en">\n{head}\n<body>\n<h1>{title}</h1>']
    if conclusion:
        parts.append(f'<p class="conclusion">{html.escape(conclusion)}</p>')
    if notice:
        parts.append(f'<p class="notice">{html.escape(notice)}</p>')
    parts += [f"<h2>{html.escape(section.title)}</h2>\n{_section_html(section)}" for section in sections]
    for section in folded:
        summary = f"<summary>{html.escape(section.title)}</summary>"
        parts.append(f"<details>{summary}\n{_section_html(section)}\n</details>")
    return "\n".join([*parts, "</body>\n</html>\n"])


def _section_html(section: Section) -> str:
    parts = [f'<p class="caption">{html.escape(section.caption)}</p>']
    if section.rows:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in section.header)
        rows = [f"<tr>{''.join(_cell_html(cell) for cell in row)}</tr>" for row in section.rows]
        table = "\n".join([f"<thead><tr>{head}</tr></thead>", "<tbody>", *rows, "</tbody>"])
        parts.append(f'<div class="wide"><table>\n{table}\n</table></div>')
    for picture in section.pictures:
        title = html.escape(picture.title)
        data = base64.b64encode(picture.png).decode()
        width = int.from_bytes(picture.png[16:20], "big") * 5 // 9  # sharp on high-resolution screens
        least = f' style="min-width: {WIDE}px"' if width > WIDE else ""
        alt = f"{html.escape(section.title)}: {title}"
        image = f'<img width="{width}"{least} alt="{alt}" src="data:image/png;base64,{data}">'
        parts.append(f"<figure><figcaption>{title}</figcaption>\n{image}</figure>")
    return "\n".join(parts)


def _cell_html(cell: TableCell) -> str:
    text = html.escape(cell.text)
    value = f'<span class="{cell.mark}">{text}</span>' if cell.mark else text
    return f"<td>{value}{''.join(f'<small>{html.escape(note)}</small>' for note in cell.notes)}</td>"
