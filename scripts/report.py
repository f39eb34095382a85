"""Tables and figures of a comparison of losses, from what `scripts/compare_losses.py` left in its results folder.

    python scripts/report.py results/acdc/table1 --out results/acdc/table1/report

writes one page, `index.html`, that holds all its figures and needs no network; the same tables as `report.md` and CSV
files; and the figures. Cells that are not finished are named and left out. The same results give the same bytes.
"""

from __future__ import annotations

import base64
import csv
import functools
import html
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import fire
import numpy as np
from matplotlib.figure import Figure

from calib_components.comparison import (
    METRICS,
    RANKED,
    Difference,
    Estimate,
    Method,
    Metric,
    Results,
    ResultsError,
    case_ranks,
    column_ranks,
    holm,
    mean_case_rank_with_interval,
    mean_of_defined,
    mean_with_interval,
    means_over_common_cases,
    paired_difference,
    read_results,
    sum_rank_with_interval,
)
from calib_components.figures import logit_bars, rank_heat_map, reliability_diagram
from calib_components.metrics import CalibrationBins

SIGNIFICANT = 0.05
MEAN, DIFFERENCE = "", "+"  # how a number is printed, see _number


class Field(NamedTuple):
    """One field of a table: its text, what stands smaller below it, and whether it is "bold" or "underlined"."""

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
    """A part of the report: a table and its numbers as records of the file `NAME.csv`, or figures, or both."""

    name: str
    title: str
    caption: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[Field]] = ()
    records: Sequence[Mapping[str, Any]] = ()
    pictures: Sequence[Picture] = ()


# --- sections -----------------------------------------------------------------------------------------------------


def means_section(results: Results) -> Section:
    """Mean of every measure with its interval, beside the published one."""
    rows, records = _estimates(results, list(METRICS))
    for row, method in zip(rows, results.methods, strict=True):
        summaries = [cell.load("summary.json") for cell in method.cells]
        missed, spurious = (sum(len(summary[what]) for summary in summaries) for what in ("missed", "spurious"))
        row.append(Field(f"{missed} / {spurious}"))
    told = " and what the paper reports for its test cases" if results.published else ""
    caption = (
        f"Mean over the cases of split {results.split}; below it, its 95 % interval{told}. Best in bold, second best "
        "underlined. HD95 is in voxels of the prepared grid, however thick its slices are; ECE, CECE, NLL and Brier "
        "score are over the foreground. The last column counts structures that only the ground truth (missed) or only "
        "the prediction has (spurious): they have DSC 0 and no HD95. All intervals on this page are over patients: "
        "they tell what other test patients could change, not what another training could."
    )
    return Section("means", "Means", caption, ["", *map(_heading, METRICS), "missed / spurious"], rows, records)


def structures_section(results: Results) -> Section:
    """Mean DSC and HD95 of every structure."""
    measures = [f"{metric}_{name}" for metric in ("dsc", "hd95") for name in results.first.structures]
    rows, records = _estimates(results, measures)
    caption = f"Mean over the cases of split {results.split} where it is defined, and its 95 % interval."
    return Section("structures", "Single structures", caption, ["", *map(_heading, measures)], rows, records)


def _estimates(results: Results, measures: Sequence[str]) -> tuple[list[list[Field]], list[dict[str, Any]]]:
    rows = [[Field(method.label)] for method in results.methods]
    records = []
    for measure in measures:
        values = [method.values(measure) for method in results.methods]
        estimates = [mean_with_interval(of_method, results.patients) for of_method in values]
        marks = _marks([estimate.mean for estimate in estimates], measure)
        for method, of_method, estimate, mark, row in zip(results.methods, values, estimates, marks, rows, strict=True):
            published = dict(zip(RANKED, results.published.get(method.name, ()), strict=False)).get(measure)
            notes = _interval(estimate, measure)
            if published is not None:
                notes.append(f"paper {_number(published, measure)}")
            row.append(Field(_number(estimate.mean, measure), notes, mark))
            cases = int(np.count_nonzero(~np.isnan(of_method)))
            record = {"method": method.name, "measure": measure, **estimate._asdict(), "cases": cases}
            records.append({**record, "seeds": len(method.cells), "published": published})
    return rows, records


def differences_section(results: Results, reference: Method) -> Section:
    """Paired differences of every other method to the reference."""
    others = [method for method in results.methods if method is not reference]
    rows = [[Field(method.label)] for method in others]
    records = []
    for measure in METRICS:
        base = reference.comparable(measure)
        differences = [paired_difference(method.comparable(measure), base, results.patients) for method in others]
        adjusted = holm([difference.p_value for difference in differences])
        for method, difference, p_value, row in zip(others, differences, adjusted, rows, strict=True):
            p_shown = "p < 0.001" if p_value < 0.001 else f"p = {_number(p_value, 'p_value')}"
            notes = [*_interval(difference, measure, DIFFERENCE), p_shown]
            mark = "bold" if p_value < SIGNIFICANT else ""
            row.append(Field(_number(difference.mean, measure, DIFFERENCE), notes, mark))
            record = {"method": method.name, "measure": measure, **difference._asdict()}
            records.append({**record, "p_value_holm": float(p_value)})
    label = reference.label
    caption = (
        f"The method less {label} on the same cases: mean, 95 % interval, and p of a Wilcoxon signed-rank test on the "
        f"patients' means after Holm's correction over the methods; bold where p < {SIGNIFICANT}. The intervals are "
        f"not corrected for there being several. {label} is better where DSC is negative and where the others are "
        "positive. A case with a structure missed or spurious has no HD95 here."
    )
    return Section("differences", f"Differences to {label}", caption, ["", *map(_heading, METRICS)], rows, records)


def ranks_section(results: Results) -> Section:
    """Both rankings, and their heat maps."""
    better = [METRICS[measure].higher_is_better for measure in RANKED]
    values = [np.stack([method.comparable(measure) for measure in RANKED], axis=1) for method in results.methods]
    of_means, of_cases = column_ranks(means_over_common_cases(values), better), case_ranks(values, better)
    sums = sum_rank_with_interval(values, better, results.patients)
    averages = mean_case_rank_with_interval(values, better, results.patients)
    rows = [[Field(method.label)] for method in results.methods]
    records: list[dict[str, Any]] = [{"method": method.name} for method in results.methods]
    for name, estimates in (("sum_rank", sums), ("mean_case_rank", averages)):
        marks = _marks([estimate.mean for estimate in estimates], name)
        for row, record, estimate, mark in zip(rows, records, estimates, marks, strict=True):
            row.append(Field(_number(estimate.mean, name), _interval(estimate, name), mark))
            record.update(zip((name, f"{name}_low", f"{name}_high"), estimate, strict=True))
    labels = [method.label for method in results.methods]
    names = [METRICS[measure].label for measure in RANKED]
    totals = {name: [record[name] for record in records] for name in ("sum_rank", "mean_case_rank")}
    by_column = rank_heat_map(of_means, totals["sum_rank"], labels, [*names, "sum"])
    of_metrics = mean_of_defined(of_cases.swapaxes(0, 1))
    by_case = rank_heat_map(of_metrics, totals["mean_case_rank"], labels, [*names, "mean"])
    pictures = [
        Picture("sum_rank", "Ranks of the means", to_png(by_column)),
        Picture("mean_case_rank", "Ranks on single cases, averaged over them", to_png(by_case)),
    ]
    caption = (
        "Over DSC, HD95, ECE and CECE of this data set, and their 95 % intervals; ties share the mean rank. Means of "
        "HD95 are here over the cases where no method misses a structure or has a spurious one; on a single case, a "
        "method that does is last."
    )
    header = ["", "sum-rank ↓", "mean-case-rank ↓"]
    return Section("ranks", "Ranks", caption, header, rows, records, pictures)


def cells_section(results: Results) -> Section:
    """What was run."""
    rows, records = [], []
    for method in results.methods:
        for cell in method.cells:
            history = cell.history
            scored = [epoch for epoch in history if epoch.get("val_dsc")]  # none without a validation split
            best = max(scored, key=lambda epoch: float(epoch["val_dsc"]), default=None)
            record = {
                "method": method.name,
                "seed": cell.settings["seed"],
                "epochs": len(history),
                "best_epoch": best and int(best["epoch"]),
                "best_val_dsc": best and round(float(best["val_dsc"]), 4),
                "seconds_per_epoch": round(float(np.median([float(epoch["seconds"]) for epoch in history])), 1),
                **cell.settings["made_with"],
            }
            records.append(record)
            rows.append([Field("" if value is None else str(value)) for value in (method.label, *record.values())])
    train = results.first.settings["train"]
    size, channels = " x ".join(map(str, train["image_size"])), ", ".join(map(str, train["network_def"]["channels"]))
    crop = " x ".join(map(str, results.first.settings["crop_size"]))
    seen = "" if crop == size else f", of which the central {crop} are seen and scored"
    validated = any(record["best_epoch"] for record in records)
    epoch = f"best epoch on the validation split, val_interval {train['val_interval']}" if validated else "last epoch"
    caption = (
        f"Evaluated on split {results.split}: {len(results.first.cases)} cases of {len(set(results.patients))} "
        f"patients, with the weights of the {epoch}; slices prepared at {size}{seen}, batches of "
        f"{train['batch_size']}, {train['max_epochs']} epochs, learning rate {train['learning_rate']}, channels "
        f"{channels}. A cell's settings.json has everything."
    )
    header = ["", *(name.replace("_", " ") for name in records[0])]
    return Section("cells", "What was run", caption, header, rows, records)


def _metric(measure: str) -> Metric:
    return METRICS.get(measure.partition("_")[0], Metric(measure, False))


def _heading(measure: str) -> str:
    metric = _metric(measure)
    return f"{metric.label} {measure.partition('_')[2]}".strip() + (" ↑" if metric.higher_is_better else " ↓")


def _number(value: float, measure: str, style: str = MEAN) -> str:
    """With as many digits as it deserves; differences have their sign, and a digit more to tell them from 0."""
    if np.isnan(value):
        return "n/a"
    if measure == "sum_rank":
        return f"{value:g}"
    digits = (2 if measure.startswith(("hd95", "mean_case_rank")) else 3) + (style == DIFFERENCE)
    return f"{round(value, digits) + 0.0:{style}.{digits}f}"  # + 0.0: no -0.000


def _interval(estimate: Estimate | Difference, measure: str, style: str = MEAN) -> list[str]:
    if np.isnan(estimate.low):
        return []
    return [f"[{_number(estimate.low, measure, style)}, {_number(estimate.high, measure, style)}]"]


def _marks(values: Sequence[float] | np.ndarray, measure: str) -> list[str]:
    """Which of the values are the best and the second best, as they are printed."""
    printed = [value if np.isnan(value) else float(_number(value, measure)) for value in values]
    places = sorted({value for value in printed if not np.isnan(value)}, reverse=_metric(measure).higher_is_better)
    marks = dict(zip(places, ("bold", "underlined"), strict=False)) if len(places) > 1 else {}
    return [marks.get(value, "") for value in printed]


def reliability_section(results: Results) -> Section:
    """Reliability diagrams of the predicted class."""
    pictures = []
    for method in results.methods:
        saved = [cell.load("calibration.json")["pooled"]["top_label"] for cell in method.cells]
        first, *rest = (CalibrationBins.from_dict(fields) for fields in saved)
        figure = reliability_diagram(sum(rest, first))
        pictures.append(Picture(f"reliability_{method.name}", method.label, to_png(figure)))
    caption = (
        "Of the predicted class, over all foreground voxels of all cases and seeds together. The pooled ECE above each "
        "is of all these voxels, too; the tables hold means over cases."
    )
    return Section("reliability", "Reliability diagrams", caption, pictures=pictures)


def logits_section(results: Results) -> Section:
    """Mean magnitude of the logits."""
    tables = {
        method.label: np.mean([np.array(c.load("logits.json")["magnitudes"], float) for c in method.cells], axis=0)
        for method in results.methods
    }
    figure = logit_bars(tables, results.first.load("logits.json")["class_names"])
    caption = "Mean magnitude of each logit, over the voxels of each class."
    return Section(
        "logits", "Size of the logits", caption, pictures=[Picture("logits", "Mean |logit|", to_png(figure))]
    )


def cases_sections(results: Results) -> list[Section]:
    """The best, the median and the worst case of each method's first seed."""
    caption = (
        "Of the cases ordered by the DSC of the volume: the slice with the most foreground, and the entropy of its "
        "probabilities. Contours have the colours of the classes in the figure of the logits."
    )
    sections = []
    for method in results.methods:
        pictures = [
            Picture(f"{method.name}_{name}", f"{name.capitalize()} case", method.cells[0].picture(name))
            for name in ("best", "median", "worst")
        ]
        sections.append(Section(f"cases_{method.name}", f"Cases: {method.label}", caption, pictures=pictures))
    return sections


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
thead th { border-bottom: 2px solid #222; vertical-align: bottom; white-space: normal; }
tbody tr { border-bottom: 1px solid #ddd; }
td small { display: block; color: #666; font-size: 0.75rem; line-height: 1.3; }
.bold { font-weight: 700; } .underlined { text-decoration: underline; }
img { max-width: 100%; height: auto; } figure { display: inline-block; margin: 1rem 1rem 0 0; }
figcaption { font-weight: 600; font-size: 0.9rem; }
summary { margin: 1rem 0 0; cursor: pointer; font-weight: 700; }
"""


def to_html(title: str, notice: str, sections: Sequence[Section], folded: Sequence[Section]) -> str:
    """The page, figures and all.

    Args:
        title: of the page.
        notice: what stands out below it.
        sections: parts to show.
        folded: parts to show when clicked.
    """
    title = html.escape(title)
    head = f'<head>\n<meta charset="utf-8">\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>'
    parts = [f'<!DOCTYPE html>\n<html lang="en">\n{head}\n<body>\n<h1>{title}</h1>']
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
        rows = [f"<tr>{''.join(_field_html(field) for field in row)}</tr>" for row in section.rows]
        table = "\n".join([f"<thead><tr>{head}</tr></thead>", "<tbody>", *rows, "</tbody>"])
        parts.append(f'<div class="wide"><table>\n{table}\n</table></div>')
    for picture in section.pictures:
        title = html.escape(picture.title)
        data = base64.b64encode(picture.png).decode()
        width = int.from_bytes(picture.png[16:20], "big") * 5 // 9  # so that it is sharp on fine screens
        image = f'<img width="{width}" alt="{title}" src="data:image/png;base64,{data}">'
        parts.append(f"<figure><figcaption>{title}</figcaption>\n{image}</figure>")
    return "\n".join(parts)


def _field_html(field: Field) -> str:
    text = html.escape(field.text)
    value = f'<span class="{field.mark}">{text}</span>' if field.mark else text
    return f"<td>{value}{''.join(f'<small>{html.escape(note)}</small>' for note in field.notes)}</td>"


def to_csv(records: Sequence[Mapping[str, Any]]) -> bytes:
    """A header and a line for each record."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue().encode()


def to_markdown(title: str, notice: str, sections: Sequence[Section]) -> str:
    """The tables, and links to the figures."""
    parts = [f"# {title}", *([f"> {notice}"] if notice else [])]
    for section in sections:
        parts += [f"## {section.title}", section.caption]
        if section.rows:
            lines = [section.header, ["---"] * len(section.header)]
            lines += [[_field_markdown(field) for field in row] for row in section.rows]
            parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        parts += [f"![{picture.title}]({picture.name}.png)" for picture in section.pictures]
    return "\n\n".join(parts) + "\n"


def _field_markdown(field: Field) -> str:
    text = {"bold": f"**{field.text}**", "underlined": f"<ins>{field.text}</ins>"}.get(field.mark, field.text)
    return "<br>".join([text, *field.notes])


def report(results: str, out: str = "report", reference: str = "nacl") -> None:
    """Write `index.html`, `report.md`, a CSV file for each table and a PNG file for each figure.

    Args:
        results: folder that scripts/compare_losses.py wrote.
        out: folder to write to.
        reference: method that the others are compared with.
    """
    folder = Path(str(out))
    source = Path(str(results)).resolve()
    if folder.resolve() in (source, *source.parents):
        raise ResultsError(f"--out {folder}: holds the results themselves; choose a folder of its own for the report")
    found = read_results(str(results))
    title = f"Losses compared: {found.dataset.upper() if found.dataset else ', '.join(found.first.structures)}"
    notices = [f"Not finished yet: {'; '.join(found.missing)}."] if found.missing else []
    seeds = {method.label: ", ".join(str(c.settings["seed"]) for c in method.cells) for method in found.methods}
    if len(set(seeds.values())) > 1:
        told = "; ".join(f"{label} {numbers}" for label, numbers in seeds.items())
        notices.append(f"Not all losses have the same seeds, so differences and ranks are not quite fair: {told}.")
    base = next((method for method in found.methods if method.name == reference), None)
    if base is None:
        notices.append(f"There are no differences, since {reference} is not finished.")
    sections = [means_section(found)]
    if base is not None and len(found.methods) > 1:
        sections.append(differences_section(found, base))
    sections += [ranks_section(found), reliability_section(found), logits_section(found)]
    sections += [structures_section(found), cells_section(found)]

    notice = " ".join(notices)
    files = {
        "index.html": to_html(title, notice, sections, cases_sections(found)).encode(),
        "report.md": to_markdown(title, notice, sections).encode(),
        **{f"{section.name}.csv": to_csv(section.records) for section in sections if section.records},
        **{f"{picture.name}.png": picture.png for section in sections for picture in section.pictures},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ResultsError(f"--out {folder}: a file; choose a folder") from None
    if others := sorted(path.name for path in folder.iterdir() if path.name not in files):
        raise ResultsError(
            f"{folder}: holds {', '.join(others)}, not of this report; move or delete them, or choose another --out"
        )
    for name, content in files.items():
        (folder / name).write_bytes(content)
    print(folder / "index.html")
    if notice:
        print(notice)


def main() -> None:
    try:
        # Fire tells of a misspelt option after the command is done: so one that does nothing takes the arguments first.
        fire.Fire(functools.wraps(report)(lambda *_, **__: None))
        fire.Fire(report)
    except ResultsError as error:
        sys.exit(f"report: {error}")


if __name__ == "__main__":
    main()
