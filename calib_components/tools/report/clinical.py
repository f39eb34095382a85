"""Sections of the report that a clinician reads: volumes, thresholds, risk and coverage, and cases by expected DSC.

They show evaluation folders; each section is None where no folder has what it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from calib_components.errors import printable
from calib_components.figures.clinical import (
    expected_dsc_scatter,
    risk_coverage_curves,
    threshold_curves,
    volume_agreement,
)
from calib_components.tools.report.conclusion import worst_cases
from calib_components.tools.report.evaluations import Evaluations, FolderEvaluation
from calib_components.tools.report.page import Picture, Section, TableCell, to_png
from calib_components.tools.report.statistics import (
    Array,
    Estimate,
    mean_of_defined,
    mean_with_interval,
    paired_difference,
    ratio_with_interval,
    spearman_with_interval,
)
from calib_components.tools.report.tables import DIFFERENCE, NONE, interval, number

__all__ = [
    "choose_thresholds",
    "chosen_thresholds",
    "expected_dsc_section",
    "risk_section",
    "thresholds_section",
    "volumes_section",
]

SHOWN = (0.1, 0.25, 0.5, 0.75, 0.9)  # thresholds in the table; the figure has all
VOLUMES = ("expected_volume", "true_volume", "volume_low", "volume_high")
USUAL = 0.5
LOWEST = 10  # cases in the table of the lowest expected DSC


def volumes_section(found: Evaluations) -> Section | None:
    """Return the segmented and the expected against the true volume of each structure."""
    structures = found.first.with_columns(*VOLUMES)
    if not structures:
        return None
    unit = found.methods[0].evaluation.volume_unit
    has_segmented = set(structures) <= {*found.first.with_columns("segmented_volume")}
    kinds = ("segmented", "expected") if has_segmented else ("expected",)
    rows, records, pictures = [], [], []
    for method in found.methods:
        drawn = {}
        for name in structures:
            expected, true, low, high = drawn[name] = tuple(method.values(f"{part}_{name}") for part in VOLUMES)
            row = [TableCell(method.label), TableCell(name), TableCell(_volume(float(mean_of_defined(true)), unit))]
            record: dict[str, Any] = {"method": method.name, "structure": name, "unit": unit}
            for kind in kinds:
                volume = method.values(f"{kind}_volume_{name}")
                bias, relative = _bias_and_relative_error(volume, true, found.patients)
                row += [
                    TableCell(_volume(float(mean_of_defined(volume)), unit)),
                    TableCell(_volume(bias.mean, unit, "+"), _interval(bias, lambda value: _volume(value, unit, "+"))),
                    TableCell(_percent(relative.mean), _interval(relative, _percent)),
                ]
                prefix = "" if kind == "expected" else f"{kind}_"
                for measure, estimate in (("bias", bias), ("relative_error_percent", relative)):
                    ends = {f"{prefix}{measure}_low": estimate.low, f"{prefix}{measure}_high": estimate.high}
                    record |= {f"{prefix}{measure}": estimate.mean, **ends}
            present = (true > 0) & ~np.isnan(expected)  # the range nearly always has the 0 of an absent one
            inside, cases = int(np.sum(present & (low <= true) & (true <= high))), int(np.sum(present))
            rows.append([*row, TableCell(f"{inside} of {cases}")])
            records.append({**record, "inside": inside, "cases": cases})
        pictures.append(Picture(f"volumes_{method.name}", method.label, to_png(volume_agreement(drawn, unit))))
    segmented = f"Segmented volume: that of the label map, in {unit}. " if has_segmented else ""
    caption = (
        f"{segmented}Expected volume of a structure: the sum of its probabilities, in {unit}. Bias: how much larger "
        "than the true volume, mean over cases; relative error: mean size of the difference, in per cent of the true "
        "volume; below both, their 95 % intervals over patients. In range: how often, of the cases that have the "
        "structure, the true volume lies between a cautious volume, of the voxels that are almost surely the structure "
        "(p > .95), and a generous one, of all that could be it (p > .05). The range leaves out voxels with p < .05; "
        "there can be so many of them that the sum of their probabilities is large, and the expected volume above the "
        "range. If probabilities were true and voxels fully dependent (one random number decides all), at least 90 % "
        "of true volumes would lie in this range where some voxel has p > .95; for independent voxels a far narrower "
        "range would hold as many."
    )
    header = ["", "structure", f"true volume ({unit})"]
    for kind in kinds:
        header += [f"{kind} volume ({unit})", f"its bias ({unit})", "its relative error ↓"]
    header, rows = _without_name(found, [*header, "in range"], rows)
    return Section("volumes", "Volumes", caption, header, rows, records, pictures)


def _bias_and_relative_error(volume: Array, true: Array, patients: Sequence[str]) -> tuple[Estimate, Estimate]:
    """Return the mean difference to the true volume, and its mean size in per cent of it."""
    difference = volume - true
    present = np.where(true > 0, true, np.nan)
    return mean_with_interval(difference, patients), mean_with_interval(100 * np.abs(difference) / present, patients)


def _without_name(
    found: Evaluations, header: list[str], rows: list[list[TableCell]]
) -> tuple[list[str], list[list[TableCell]]]:
    """Return header and rows without the column that names the network, if there is only one."""
    start = 1 if len(found.methods) == 1 else 0
    return header[start:], [row[start:] for row in rows]


def thresholds_section(found: Evaluations, validation: FolderEvaluation | None) -> Section | None:
    """Return sensitivity, specificity, PPV and DSC at some thresholds.

    Args:
        found: The evaluations.
        validation: Evaluation of validation cases on which the threshold of each structure is chosen; None for none.
    """
    chosen = {} if validation is None else choose_thresholds(validation)
    rows, records, pictures = [], [], []
    for method in found.methods:
        counts = method.evaluation.thresholds
        if counts is None:
            continue
        for index, structure in enumerate(method.evaluation.threshold_structures):
            estimates = {
                name: ratio_with_interval(np.asarray(above), np.asarray(below), found.patients)
                for name, (above, below) in counts.ratios(index).items()
            }
            for place, threshold in enumerate(counts.thresholds.tolist()):
                record = {"method": method.name, "structure": structure, "threshold": round(threshold, 4)}
                is_chosen = bool(np.isclose(threshold, chosen.get(structure, np.nan)))
                note = "chosen" if is_chosen else "usual" if np.isclose(threshold, USUAL) else ""
                mark = "bold" if is_chosen else ""
                cells = [TableCell(method.label), TableCell(structure)]
                cells.append(TableCell(f"{threshold:.2f}", [note] if note else [], mark))
                for name, of_thresholds in estimates.items():
                    estimate = of_thresholds[place]
                    record |= {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
                    cells.append(TableCell(_specific(estimate.mean), _interval(estimate, _specific), mark))
                records.append({**record, "chosen": is_chosen})
                if is_chosen or np.isclose(threshold, SHOWN).any():
                    rows.append(cells)
        tables = {name: counts.table(index) for index, name in enumerate(method.evaluation.threshold_structures)}
        pictures.append(Picture(f"thresholds_{method.name}", method.label, to_png(threshold_curves(tables, chosen))))
    if not rows:
        return None
    caption = (
        "A structure is where its probability is above the threshold. Sensitivity, specificity and PPV (positive "
        "predictive value) are of the voxels of all cases together, DSC is the mean over the cases that have the "
        "structure; below each, its 95 % interval over patients. Specificity is high wherever most of the volume is "
        f"background. The usual threshold is {USUAL}. "
    )
    caption += (
        "No threshold was chosen: to choose one by the highest mean DSC of validation cases, give their evaluation "
        "folder with --validation. The best row of these test cases is no choice: it would be too optimistic."
        if validation is None
        else f"In bold: the threshold with the highest mean DSC on the {len(validation.cases)} cases of the validation "
        "folder."
    )
    if chosen:
        caption += f" {chosen_thresholds(found, chosen)}"
    header = ["", "structure", "threshold", "sensitivity ↑", "specificity ↑", "PPV ↑", "DSC ↑"]
    header, rows = _without_name(found, header, rows)
    return Section("thresholds", "Thresholds", caption, header, rows, records, pictures)


def chosen_thresholds(found: Evaluations, chosen: Mapping[str, float]) -> str:
    """Return what chosen thresholds change, as one sentence.

    Args:
        found: The evaluation of one network.
        chosen: The threshold of each structure, see `choose_thresholds`.
    """
    evaluation = found.methods[0].evaluation
    counts = evaluation.thresholds
    assert counts is not None
    at, parts = counts.thresholds.numpy(), []
    for name, threshold in chosen.items():
        index = evaluation.threshold_structures.index(name)
        dsc = np.where(counts.true[:, [index]].numpy() > 0, counts.dsc[:, index].numpy(), np.nan)
        own, usual = (dsc[:, np.abs(at - value).argmin()] for value in (threshold, USUAL))
        change = paired_difference(own, usual, found.patients)
        size = " ".join([number(change.mean, "dsc", DIFFERENCE), *interval(change, "dsc", DIFFERENCE)])
        parts.append(f"{name} {threshold:.2f} (DSC {size} against {USUAL})")
    parts += [f"none for {name}, which they lack" for name in evaluation.threshold_structures if name not in chosen]
    return f"Thresholds chosen on the validation cases: {', '.join(parts)}."


def choose_thresholds(validation: FolderEvaluation) -> dict[str, float]:
    """Return the threshold of each structure with the highest mean DSC on validation cases."""
    counts = validation.thresholds
    best = [] if counts is None else counts.best().tolist()
    return {name: value for name, value in zip(validation.threshold_structures, best, strict=True) if value == value}


def risk_section(found: Evaluations) -> Section | None:
    """Return error rates among the most confident voxels, and the share of errors among the most uncertain ones."""
    if not {"aurc", "error_share_5"} <= found.first.columns.keys():
        return None
    rows, records, risks = [], [], {}
    coverage = found.methods[0].evaluation.coverage
    for method in found.methods:
        area = mean_with_interval(method.values("aurc"), found.patients)
        share = mean_with_interval(100 * method.values("error_share_5"), found.patients)
        rows.append(
            [
                TableCell(method.label),
                TableCell(f"{area.mean:.5f}", _interval(area, lambda value: f"{value:.5f}")),
                TableCell(_percent(share.mean), _interval(share, _percent)),
            ]
        )
        for name, estimate in (("aurc", area), ("error_share_5_percent", share)):
            records.append({"method": method.name, "measure": name, **estimate._asdict()})
        evaluation = method.evaluation
        if evaluation.risk.size and np.array_equal(evaluation.coverage, coverage):
            risks[method.label] = mean_of_defined(evaluation.risk)
    caption = (
        "Voxels are ordered by the probability of their predicted class. Risk is the error rate among the most "
        "confident share of them, the coverage; AURC is the area under this curve, mean over cases, with its 95 % "
        "interval over patients. It falls with fewer errors and with a better order, not with better calibration. The "
        "last column: the share of all errors that lie among the 5 % most uncertain voxels of the case."
    )
    pictures = []
    if risks:
        pictures = [Picture("risk_coverage", "Risk over coverage", to_png(risk_coverage_curves(coverage, risks)))]
    header = ["", "AURC ↓", "errors among the 5 % most uncertain voxels ↑"]
    return Section("risk_coverage", "Risk and coverage", caption, header, rows, records, pictures)


def expected_dsc_section(found: Evaluations) -> Section | None:
    """Return the cases by their expected DSC, the lowest first, beside their true DSC."""
    if not found.first.with_columns("expected_dsc"):
        return None
    rows, records, pictures, texts = [], [], [], []
    for method in found.methods:
        expected, true = method.expected_and_true()
        correlation = spearman_with_interval(expected, true, found.patients)
        notes = " ".join(interval(correlation, "rho"))
        worst, count, _ = worst_cases(expected, true)
        named = f"{method.label} {number(correlation.mean, 'rho')} {notes}".strip()
        texts.append(f"{named}, {f'{worst} of {count}' if count else 'where equal values leave open which these are'}")
        places = _places(true)
        for place, index in enumerate(np.argsort(expected, kind="stable"), start=1):
            case = printable(found.first.cases[index])
            cells = [method.label, str(place), case, number(expected[index], "dsc"), number(true[index], "dsc")]
            record = {"method": method.name, "case": case}
            records.append({**record, "expected_dsc": float(expected[index]), "dsc": float(true[index])})
            if place <= LOWEST:
                rows.append([TableCell(text) for text in [*cells, places[index]]])
        drawn = to_png(expected_dsc_scatter(expected, true))
        pictures.append(Picture(f"expected_dsc_{method.name}", method.label, drawn))
    shown = f"the {LOWEST} cases" if len(found.first.cases) > LOWEST else "the cases"
    caption = (
        "Expected DSC: from the probabilities alone, without the ground truth; mean over structures. If low confidence "
        "finds the bad cases, those with the lowest expected DSC, which one would review first, also have the lowest "
        f"true DSC. Spearman's rank correlation of the two, with its 95 % interval over patients, and how many of the "
        f"worst cases, a fifth of all, are among as many of lowest expected DSC: {'; '.join(texts)}. "
        f"The table has {shown} with the lowest expected DSC; place 1 is the lowest."
    )
    header = ["", "place", "case", "expected DSC", "true DSC", "place by true DSC"]
    header, rows = _without_name(found, header, rows)
    return Section("expected_dsc", "Cases by expected DSC", caption, header, rows, records, pictures)


def _places(values: Array) -> list[str]:
    """Return the place of each value, the lowest first; none where it is undefined."""
    order = {int(index): place for place, index in enumerate(np.argsort(values, kind="stable"), start=1)}
    return [NONE if np.isnan(value) else str(order[index]) for index, value in enumerate(values)]


def _volume(value: float, unit: str, style: str = "") -> str:
    """Return a volume: hundredths of a millilitre, or whole voxels."""
    digits = 2 if unit == "ml" else 0
    return NONE if np.isnan(value) else f"{round(value, digits) + 0.0:{style}.{digits}f}"


def _percent(value: float) -> str:
    return NONE if np.isnan(value) else f"{value:.1f} %"


def _specific(value: float) -> str:
    """Return a share with more digits near 1, where specificity lies."""
    return NONE if np.isnan(value) else f"{value:.5f}" if 0.999 < value < 1 else f"{value:.3f}"


def _interval(estimate: Estimate, text: Callable[[float], str]) -> list[str]:
    return [] if np.isnan(estimate.low) else [f"[{text(estimate.low)}, {text(estimate.high)}]"]
