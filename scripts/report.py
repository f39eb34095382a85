"""Tables and figures of a comparison of losses, from what `scripts/compare_losses.py` left in its results folder.

    python scripts/report.py results/acdc/table1 --out results/acdc/table1/report

writes one page, `index.html`, that holds all its figures and needs no network; the same tables as `report.md` and CSV
files; and the figures. Cells that are not finished are named and left out. The same results give the same bytes.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import fire
import numpy as np
import torch
from matplotlib.figure import Figure

from calib_components.comparison import (
    METRICS,
    RANKED,
    Method,
    Metric,
    Results,
    ResultsError,
    case_ranks,
    column_ranks,
    holm,
    mean_case_rank,
    mean_with_interval,
    paired_difference,
    read_results,
    sum_rank,
)
from calib_components.figures import logit_bars, rank_heat_map, reliability_diagram
from calib_components.metrics import CalibrationBins

SIGNIFICANT = 0.05


class Field(NamedTuple):
    """One field of a table: its text, what stands smaller below it, and whether it is "best" or "second"."""

    text: str
    notes: Sequence[str] = ()
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table to read, and its numbers as records of a CSV file."""

    name: str
    title: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Field]]
    records: Sequence[Mapping[str, Any]]


class Picture(NamedTuple):
    """A figure as PNG."""

    name: str
    title: str
    caption: str
    png: bytes


# --- tables -------------------------------------------------------------------------------------------------------


def means_table(results: Results) -> Table:
    """Mean of every measure with its interval, beside the published one."""
    rows, records = _estimates(results, list(METRICS))
    for row, method in zip(rows, results.methods, strict=True):
        summaries = [cell.load("summary.json") for cell in method.cells]
        missed, spurious = (sum(len(summary[what]) for summary in summaries) for what in ("missed", "spurious"))
        row.append(Field(f"{missed} / {spurious}"))
    caption = (
        "Mean over test cases; below it, its 95 % interval and what the paper reports. Best in bold, second best "
        "underlined. HD95 is in voxels; ECE, CECE, NLL and Brier score are over the foreground. The last column counts "
        "structures that only the ground truth or only the prediction has: they have DSC 0 and no HD95."
    )
    return Table("means", "Means", caption, ["", *map(_heading, METRICS), "missed / made up"], rows, records)


def structures_table(results: Results) -> Table:
    """Mean DSC and HD95 of every structure."""
    measures = [f"{metric}_{name}" for metric in ("dsc", "hd95") for name in results.first.structures]
    rows, records = _estimates(results, measures)
    caption = "Mean over the test cases where it is defined, and its 95 % interval."
    return Table("structures", "Single structures", caption, ["", *map(_heading, measures)], rows, records)


def _estimates(results: Results, measures: Sequence[str]) -> tuple[list[list[Field]], list[dict[str, Any]]]:
    rows = [[Field(method.label)] for method in results.methods]
    records = []
    for measure in measures:
        values = [method.values(measure) for method in results.methods]
        estimates = [mean_with_interval(of_method, results.patients) for of_method in values]
        marks = _marks([estimate.mean for estimate in estimates], measure)
        for method, of_method, estimate, mark, row in zip(results.methods, values, estimates, marks, rows, strict=True):
            published = dict(zip(RANKED, results.published.get(method.name, ()), strict=False)).get(measure)
            notes = [f"[{_number(estimate.low, measure)}, {_number(estimate.high, measure)}]"]
            if published is not None:
                notes.append(f"paper {_number(published, measure)}")
            row.append(Field(_number(estimate.mean, measure), notes, mark))
            cases = int(np.count_nonzero(~np.isnan(of_method)))
            record = {"method": method.name, "measure": measure, **estimate._asdict(), "cases": cases}
            records.append({**record, "seeds": len(method.cells), "published": published})
    return rows, records


def differences_table(results: Results, reference: Method) -> Table:
    """Paired differences of every other method to the reference."""
    others = [method for method in results.methods if method is not reference]
    rows = [[Field(method.label)] for method in others]
    records = []
    for measure in METRICS:
        base = reference.comparable(measure)
        differences = [paired_difference(method.comparable(measure), base, results.patients) for method in others]
        adjusted = holm([difference.p_value for difference in differences])
        for method, difference, p_value, row in zip(others, differences, adjusted, rows, strict=True):
            low, high = (f"{_number(end, measure, '+')}" for end in (difference.low, difference.high))
            notes = [f"[{low}, {high}]", "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"]
            row.append(Field(_number(difference.mean, measure, "+"), notes, "best" if p_value < SIGNIFICANT else ""))
            record = {"method": method.name, "measure": measure, **difference._asdict()}
            records.append({**record, "p_value_holm": float(p_value)})
    label = reference.label
    caption = (
        f"The method less {label} on the same cases: mean, 95 % interval, and p of a Wilcoxon signed-rank test on the "
        f"patients' means after Holm's correction over the methods; bold where p < {SIGNIFICANT}. {label} is better where "
        "DSC is negative and where the others are positive. A case with a structure missed or made up has no HD95 here."
    )
    return Table("differences", f"Differences to {label}", caption, ["", *map(_heading, METRICS)], rows, records)


def ranks_table(results: Results) -> tuple[Table, list[Picture]]:
    """Both rankings, and their heat maps."""
    better = [METRICS[measure].higher_is_better for measure in RANKED]
    means = [[np.nanmean(method.values(measure)) for measure in RANKED] for method in results.methods]
    values = [np.stack([method.comparable(measure) for measure in RANKED], axis=1) for method in results.methods]
    sums, averages = sum_rank(means, better), mean_case_rank(values, better)
    rows, records = [], []
    marks = zip(_marks(sums, "rank"), _marks(averages, "rank"), strict=True)
    for method, total, average, (first, second) in zip(results.methods, sums, averages, marks, strict=True):
        rows.append([Field(method.label), Field(f"{total:g}", (), first), Field(_number(average, "rank"), (), second)])
        records.append({"method": method.name, "sum_rank": float(total), "mean_case_rank": float(average)})
    labels = [method.label for method in results.methods]
    names = [METRICS[measure].label for measure in RANKED]
    by_column = rank_heat_map(column_ranks(means, better), sums, labels, [*names, "sum"])
    by_case = rank_heat_map(np.nanmean(case_ranks(values, better), axis=1), averages, labels, [*names, "mean"])
    pictures = [
        Picture("sum_rank", "Sum-rank", "Ranks of the means, and their sum.", to_png(by_column)),
        Picture("mean_case_rank", "Mean-case-rank", "Ranks on single cases, averaged over them.", to_png(by_case)),
    ]
    caption = "Over DSC, HD95, ECE and CECE; 1 is best. On a single case, HD95 is last where a structure is missed or made up."
    return Table("ranks", "Ranks", caption, ["", "sum-rank ↓", "mean-case-rank ↓"], rows, records), pictures


def cells_table(results: Results) -> Table:
    """What was run."""
    rows, records = [], []
    for method in results.methods:
        for cell in method.cells:
            with open(cell.folder / "history.csv", newline="") as file:
                history = list(csv.DictReader(file))
            best = max((epoch for epoch in history if epoch["val_dsc"]), key=lambda epoch: float(epoch["val_dsc"]))
            record = {
                "method": method.name,
                "seed": cell.settings["seed"],
                "epochs": len(history),
                "best_epoch": int(best["epoch"]),
                "best_val_dsc": round(float(best["val_dsc"]), 4),
                "seconds_per_epoch": round(float(np.median([float(epoch["seconds"]) for epoch in history])), 1),
                **cell.settings["made_with"],
            }
            records.append(record)
            rows.append([Field(str(value)) for value in {**record, "method": method.label}.values()])
    train, split = results.first.settings["train"], results.first.settings["evaluate"]["split"]
    caption = (
        f"Evaluated on split {split}: {len(results.first.cases)} cases of {len(set(results.patients))} patients, with the "
        f"weights of the best epoch on the validation split. Images {' x '.join(map(str, train['image_size']))}, batches "
        f"of {train['batch_size']}, {train['max_epochs']} epochs, learning rate {train['learning_rate']}, channels "
        f"{', '.join(map(str, train['network_def']['channels']))}. settings.json of a cell has all of its configuration."
    )
    header = ["", *(name.replace("_", " ") for name in records[0] if name != "method")]
    return Table("cells", "What was run", caption, header, rows, records)


def _metric(measure: str) -> Metric:
    return METRICS.get(measure.partition("_")[0], Metric(measure, False))


def _heading(measure: str) -> str:
    metric = _metric(measure)
    return f"{metric.label} {measure.partition('_')[2]}".strip() + (" ↑" if metric.higher_is_better else " ↓")


def _number(value: float, measure: str, sign: str = "") -> str:
    return f"{value:{sign}.{2 if measure.startswith(('hd95', 'rank')) else 3}f}"


def _marks(values: Sequence[float] | np.ndarray, measure: str) -> list[str]:
    """Which of the values are the best and the second best, as they are printed."""
    printed = [float(_number(value, measure)) for value in values]
    places = sorted({value for value in printed if not np.isnan(value)}, reverse=_metric(measure).higher_is_better)
    marks = dict(zip(places, ("best", "second"), strict=False)) if len(places) > 1 else {}
    return [marks.get(value, "") for value in printed]


# --- figures ------------------------------------------------------------------------------------------------------


def reliability_picture(results: Results) -> Picture:
    """Reliability of the predicted class, a panel a method."""
    pooled = []
    for method in results.methods:
        saved = [cell.load("calibration.json")["pooled"]["top_label"] for cell in method.cells]
        first, *rest = (CalibrationBins.from_dict(fields) for fields in saved)
        pooled.append(sum(rest, first))
    # Drawn as if each method were a class: (1, methods, bins).
    side_by_side = CalibrationBins(
        *(torch.stack([getattr(bins, name) for bins in pooled], 1) for name in ("count", "confidence", "accuracy"))
    )
    figure = reliability_diagram(side_by_side, [method.label for method in results.methods])
    caption = "Predicted class, all foreground voxels of all cases and seeds together."
    return Picture("reliability", "Reliability", caption, to_png(figure))


def logits_picture(results: Results) -> Picture:
    """Mean magnitude of the logits, a panel a method."""
    tables = {
        method.label: np.mean(
            [np.array(cell.load("logits.json")["magnitudes"], float) for cell in method.cells], axis=0
        )
        for method in results.methods
    }
    figure = logit_bars(tables, results.first.load("logits.json")["class_names"])
    caption = "Mean magnitude of each logit over the voxels of each class."
    return Picture("logits", "Size of the logits", caption, to_png(figure))


def case_pictures(method: Method) -> list[Picture]:
    """The best, the median and the worst case of a method's first seed."""
    folder = method.cells[0].folder / "cases"
    return [
        Picture(f"{method.name}_{name}", f"{method.label}: {name} case", "", (folder / f"{name}.png").read_bytes())
        for name in ("best", "median", "worst")
    ]


def to_png(figure: Figure) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


# --- writing ------------------------------------------------------------------------------------------------------

STYLE = """
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; font: 16px/1.45 system-ui, sans-serif; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
.caption { max-width: 48rem; color: #555; font-size: 0.9rem; }
.notice { padding: 0.5rem 1rem; border-left: 4px solid #d55e00; background: #fdf3ec; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 0.9rem 0.35rem 0; text-align: left; vertical-align: top; white-space: nowrap; }
thead th { border-bottom: 2px solid #222; } tbody tr { border-bottom: 1px solid #ddd; }
td small { display: block; color: #666; font-size: 0.75rem; line-height: 1.3; }
.best { font-weight: 700; } .second { text-decoration: underline; }
img { max-width: 100%; height: auto; } figure { margin: 1rem 0; }
.ranks img { max-height: 22rem; } summary { cursor: pointer; margin: 0.5rem 0; }
"""


def to_html(
    title: str, notice: str, tables: Sequence[Table], pictures: Sequence[Picture], cases: Sequence[Picture]
) -> str:
    """The page, figures and all."""
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>"
    ]
    if notice:
        parts.append(f'<p class="notice">{html.escape(notice)}</p>')
    parts += [_table_html(table) for table in tables]
    parts += [f"<h2>{html.escape(picture.title)}</h2>\n{_picture_html(picture)}" for picture in pictures]
    parts.append("<h2>Cases</h2>")
    caption = "Of the cases ordered by DSC: the slice with the most foreground, and the entropy of its probabilities (0 to 1)."
    parts.append(f'<p class="caption">{caption}</p>')
    for picture in cases:
        parts.append(f"<details><summary>{html.escape(picture.title)}</summary>\n{_picture_html(picture)}</details>")
    return "\n".join([*parts, "</body>\n</html>\n"])


def _table_html(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.header)
    rows = []
    for row in table.rows:
        fields = []
        for text, notes, mark in row:
            value = f'<span class="{mark}">{html.escape(text)}</span>' if mark else html.escape(text)
            fields.append(f"<td>{value}{''.join(f'<small>{html.escape(note)}</small>' for note in notes)}</td>")
        rows.append(f"<tr>{''.join(fields)}</tr>")
    return (
        f'<h2>{html.escape(table.title)}</h2>\n<p class="caption">{html.escape(table.caption)}</p>\n<div class="wide">'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody>\n</table></div>"
    )


def _picture_html(picture: Picture) -> str:
    caption = f'\n<figcaption class="caption">{html.escape(picture.caption)}</figcaption>' if picture.caption else ""
    data = base64.b64encode(picture.png).decode()
    return f'<figure><img alt="{html.escape(picture.title)}" src="data:image/png;base64,{data}">{caption}</figure>'


def to_markdown(title: str, notice: str, tables: Sequence[Table], pictures: Sequence[Picture]) -> str:
    """The tables, and links to the figures."""
    parts = [f"# {title}", *([f"> {notice}"] if notice else [])]
    for table in tables:
        lines = ["| " + " | ".join(table.header) + " |", "|" + "---|" * len(table.header)]
        for row in table.rows:
            fields = []
            for text, notes, mark in row:
                value = {"best": f"**{text}**", "second": f"<ins>{text}</ins>"}.get(mark, text)
                fields.append("<br>".join([value, *notes]))
            lines.append("| " + " | ".join(fields) + " |")
        parts += [f"## {table.title}", table.caption, "\n".join(lines)]
    for picture in pictures:
        parts += [f"## {picture.title}", f"![{picture.title}]({picture.name}.png)", picture.caption]
    return "\n\n".join(parts) + "\n"


def report(results: str, out: str = "report", reference: str = "nacl") -> None:
    """Write `index.html`, `report.md`, a CSV file for each table and a PNG file for each figure.

    Args:
        results: folder that scripts/compare_losses.py wrote.
        out: folder to write to.
        reference: method that the others are compared with.
    """
    found = read_results(str(results))
    bundle = found.first.settings["bundle"]
    title = f"Losses compared: {bundle.partition('_')[0].upper()}"
    notices = [f"Not finished yet: {'; '.join(found.missing)}."] if found.missing else []
    base = next((method for method in found.methods if method.name == reference), None)
    if base is None:
        notices.append(f"There are no differences, since {reference} is not finished.")
    ranks, pictures = ranks_table(found)
    tables = [
        means_table(found),
        *([differences_table(found, base)] if base is not None and len(found.methods) > 1 else []),
        ranks,
        structures_table(found),
        cells_table(found),
    ]
    pictures += [reliability_picture(found), logits_picture(found)]
    cases = [picture for method in found.methods for picture in case_pictures(method)]

    folder = Path(str(out))
    folder.mkdir(parents=True, exist_ok=True)
    notice = " ".join(notices)
    (folder / "index.html").write_text(to_html(title, notice, tables, pictures, cases), encoding="utf-8")
    (folder / "report.md").write_text(to_markdown(title, notice, tables, pictures), encoding="utf-8")
    for table in tables:
        with open(folder / f"{table.name}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(table.records[0]))
            writer.writeheader()
            writer.writerows(table.records)
    for picture in pictures:
        (folder / f"{picture.name}.png").write_bytes(picture.png)
    print(folder / "index.html")
    if notice:
        print(notice)


def main() -> None:
    try:
        fire.Fire(report)
    except ResultsError as error:
        sys.exit(f"report: {error}")


if __name__ == "__main__":
    main()
