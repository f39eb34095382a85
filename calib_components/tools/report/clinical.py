"""Sections of the report that a clinician reads: volumes, thresholds, risk and coverage, and cases by expected DSC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from calib_components.errors import InputError, printable
from calib_components.figures import expected_dsc_scatter, risk_coverage_curves, threshold_curves, volume_agreement
from calib_components.handlers.evaluation_files import Evaluation
from calib_components.metrics import ThresholdCounts
from calib_components.tools.report.conclusion import expected_and_true, worst_cases
from calib_components.tools.report.data import Results, Row
from calib_components.tools.report.page import Cell, Picture, Section, to_png
from calib_components.tools.report.statistics import (
    Array,
    mean_of_defined,
    mean_with_interval,
    paired_difference,
    ratio_with_interval,
    spearman_with_interval,
)
from calib_components.tools.report.text import Record, number, tabulate, with_interval

SHOWN = (0.1, 0.25, 0.5, 0.75, 0.9)  # thresholds in the table; the figure has all
VOLUMES = ("expected_volume", "true_volume", "volume_low", "volume_high")  # as in the figure
USUAL = 0.5
LOWEST = 10  # cases in the table of the lowest expected DSC


def clinical_sections(results: Results, chosen: Mapping[str, float]) -> list[Section]:
    """Return the sections of evaluation folders that have what they need.

    Args:
        results: The evaluations.
        chosen: Threshold of each structure that was chosen on validation cases; empty for none.
    """
    sections = [_volumes(results), _thresholds(results, chosen), _risk(results), _expected_dsc(results)]
    return [section for section in sections if section is not None]


def _section(name: str, title: str, caption: str, records: list[dict[str, Any]], pictures: list[Picture]) -> Section:
    """Return a section whose lines are of a method and, where records have them, a structure and a threshold."""
    keys = [key for key in ("structure", "threshold") if key in records[0]]

    def first(record: Record) -> tuple[Cell, ...]:
        mark = "bold" if record.get("chosen") else ""
        return Cell(record["label"]), *(Cell(str(record[key]), mark=mark) for key in keys)

    shown = [r for r in records if "threshold" not in r or r["chosen"] or np.isclose(r["threshold"], SHOWN).any()]
    header, lines = tabulate(shown, first)
    return Section(name, title, caption, ["", *keys, *header], lines, records, pictures)


def _volumes(results: Results) -> Section | None:
    """Return the segmented and the expected against the true volume of each structure."""
    structures = [name for name in results.structures if results.has(f"expected_volume_{name}")]
    if not structures:
        return None
    unit, patients, records, pictures = results.about["volume_unit"], results.patients(), [], []
    for method, label in results.labels.items():
        drawn = {}
        for name in structures:
            keys = {"method": method, "label": label, "structure": name}
            expected, true, low, high = drawn[name] = [
                results.values(Row(method), f"{measure}_{name}")[0] for measure in VOLUMES
            ]
            measured = {"true_volume": (true, unit)}
            segmented = results.values(Row(method), f"segmented_volume_{name}")[0]
            for kind, volume in (("segmented", segmented), ("expected", expected)):
                relative = 100 * np.abs(volume - true) / np.where(true > 0, true, np.nan)
                measured[f"{kind}_volume"] = volume, unit
                measured[f"{kind}_minus_true"] = volume - true, unit
                measured[f"{kind}_relative_error"] = relative, "percent"
            inside = np.where((true > 0) & ~np.isnan(expected), 100.0 * ((low <= true) & (true <= high)), np.nan)
            measured["in_range"] = inside, "percent"
            for measure, (values, of_measure) in measured.items():
                estimate = mean_with_interval(values, patients)._asdict()
                records.append({**keys, "measure": measure, "unit": of_measure, **estimate})
        pictures.append(Picture(f"volumes_{method}", label, to_png(volume_agreement(drawn, unit))))
    caption = (
        f"Means in {unit} with 95 % intervals over patients. Segmented volume: that of the label map. Expected volume: "
        "the sum of the probabilities. In range: cases with the structure whose true volume lies between the volume of "
        "p > .95 and that of p > .05; at least 90 % if probabilities were true and voxels fully dependent."
    )
    return _section("volumes", "Volumes", caption, records, pictures)


def _counts(folder: Path, cases: list[str] | None = None) -> tuple[list[str], ThresholdCounts] | None:
    """Return structures and counts at each threshold of an evaluation, of the given cases; None without them."""
    evaluation = Evaluation.read(folder)
    if (counts := evaluation.thresholds) is None:
        return None
    if cases is not None:
        index = _index(evaluation, cases)
        fields = ("true_positive", "predicted", "true", "voxels")
        counts = replace(counts, **{name: getattr(counts, name)[index] for name in fields})
    return list(evaluation.structures), counts


def _index(evaluation: Evaluation, cases: list[str]) -> list[int]:
    names = evaluation.cases["case"].tolist()
    return [names.index(case) for case in cases]


def _ratios(counts: ThresholdCounts, structure: int) -> dict[str, tuple[Array, Array]]:
    """Return numerators and denominators, `(cases, T)` each, of sums over cases at each threshold."""
    positive, predicted = (part[:, structure].numpy() for part in (counts.true_positive, counts.predicted))
    true, voxels = (part[:, structure, None].numpy() + 0 * predicted for part in (counts.true, counts.voxels))
    return {
        "sensitivity": (positive, true),
        "specificity": (voxels - true - (predicted - positive), voxels - true),
        "ppv": (positive, predicted),
        "dsc": (np.where(true > 0, counts.dsc[:, structure].numpy(), 0), true > 0),  # a mean over cases
    }


def _thresholds(results: Results, chosen: Mapping[str, float]) -> Section | None:
    """Return sensitivity, specificity, PPV and DSC at some thresholds."""
    records, pictures = [], []
    for method, label in results.labels.items():
        if (found := _counts(results.folders[method], results.names())) is None:
            continue
        structures, counts = found
        for index, structure in enumerate(structures):
            for measure, (above, below) in _ratios(counts, index).items():
                estimates = ratio_with_interval(above, below, results.patients())
                for threshold, estimate in zip(counts.thresholds.tolist(), estimates, strict=True):
                    keys = {"method": method, "label": label, "structure": structure, "threshold": round(threshold, 4)}
                    is_chosen = bool(np.isclose(threshold, chosen.get(structure, np.nan)))
                    unit = "aurc" if 0.999 < estimate.mean < 1 else "dsc"  # digits: specificity is near 1
                    records.append(keys | {"chosen": is_chosen, "measure": measure, "unit": unit, **estimate._asdict()})
        figure = threshold_curves({name: counts.table(index) for index, name in enumerate(structures)}, chosen)
        pictures.append(Picture(f"thresholds_{method}", label, to_png(figure)))
    if not records:
        return None
    caption = (
        "A structure is where its probability is above the threshold. Sensitivity, specificity and PPV (positive "
        "predictive value) are of the voxels of all cases together, DSC is the mean over the cases that have the "
        "structure; below each, its 95 % interval over patients. "
    )
    caption += (
        "In bold: the threshold of the highest mean DSC on the validation cases."
        if chosen
        else "To choose a threshold, give an evaluation of validation cases with --validation: the best of these test "
        "cases would be too optimistic."
    )
    return _section("thresholds", "Thresholds", caption, records, pictures)


def choose_thresholds(folder: Path, results: Results) -> dict[str, float]:
    """Return the threshold of each structure with the highest mean DSC on validation cases.

    Args:
        folder: Evaluation folder of the validation cases.
        results: The evaluation that thresholds are chosen for.

    Raises:
        InputError: The folder has no thresholds, or those of other structures.
    """
    if (found := _counts(folder)) is None:
        raise InputError(f"--validation: {folder} has no thresholds.json. Give an evaluation with probabilities.")
    structures, counts = found
    if {*structures} != {*results.structures}:
        raise InputError(
            f"--validation: {folder} has the structures {', '.join(structures)}, the evaluation "
            f"{', '.join(results.structures)}."
        )
    return {name: value for name, value in zip(structures, counts.best().tolist(), strict=True) if value == value}


def chosen_thresholds(results: Results, chosen: Mapping[str, float]) -> str:
    """Return what chosen thresholds change in the DSC, as one sentence."""
    (method,) = results.methods
    found = _counts(results.folders[method], results.names())
    assert found is not None
    structures, counts = found
    at, parts = counts.thresholds.numpy(), []
    for name, threshold in chosen.items():
        index = structures.index(name)
        dsc = np.where(counts.true[:, [index]].numpy() > 0, counts.dsc[:, index].numpy(), np.nan)
        own, usual = (dsc[:, np.abs(at - value).argmin()] for value in (threshold, USUAL))
        change = paired_difference(own, usual, results.patients())
        parts.append(f"{name} {threshold:.2f} (DSC {with_interval(change, 'dsc', True)} against {USUAL})")
    parts += [f"none for {name}, which they lack" for name in structures if name not in chosen]
    return f"Thresholds chosen on the validation cases: {', '.join(parts)}."


def _risk(results: Results) -> Section | None:
    """Return error rates among the most confident voxels, and the share of errors among the most uncertain ones."""
    if not results.has("aurc", "error_share_5"):
        return None
    records, risks, coverages = [], {}, []
    for method, label in results.labels.items():
        area, share = (results.values(Row(method), name)[0] for name in ("aurc", "error_share_5"))
        for measure, unit, values in (("aurc", "aurc", area), ("error_share", "percent", 100 * share)):
            estimate = mean_with_interval(values, results.patients())._asdict()
            records.append({"method": method, "label": label, "measure": measure, "unit": unit, **estimate})
        evaluation = Evaluation.read(results.folders[method])
        if evaluation.coverage is not None and evaluation.risk is not None:
            coverages.append(evaluation.coverage)
            if np.array_equal(evaluation.coverage, coverages[0]):
                risks[label] = mean_of_defined(evaluation.risk[_index(evaluation, results.names())])
    pictures = []
    if risks:
        pictures = [Picture("risk_coverage", "Risk over coverage", to_png(risk_coverage_curves(coverages[0], risks)))]
    caption = (
        "Risk is the error rate among the most confident share of the voxels, the coverage. AURC is the area under "
        "this curve, mean over cases, with its 95 % interval over patients. It falls with fewer errors and with a "
        "better order of the voxels, not with better calibration."
    )
    return _section("risk_coverage", "Risk and coverage", caption, records, pictures)


def _expected_dsc(results: Results) -> Section | None:
    """Return the cases by their expected DSC, the lowest first, beside their true DSC."""
    if not any(results.has(f"expected_dsc_{name}") for name in results.structures):
        return None
    cells, records, pictures, texts = [], [], [], []
    for method, label in results.labels.items():
        expected, true = expected_and_true(results, Row(method))
        correlation = spearman_with_interval(expected, true, results.patients())
        found, count, _ = worst_cases(expected, true)
        told = f"{found} of {count}" if count else "where equal values leave open which these are"
        texts.append(f"{label} {with_interval(correlation, 'rho')}, {told}")
        places = np.argsort(np.argsort(true, kind="stable"), kind="stable") + 1
        for place, i in enumerate(np.argsort(expected, kind="stable"), start=1):
            case = printable(results.names()[i])
            of_true = "n/a" if np.isnan(true[i]) else str(places[i])
            records.append({"method": method, "case": case, "expected_dsc": expected[i], "dsc": true[i]})
            if place <= LOWEST:
                line = [label, str(place), case, number(expected[i], "dsc"), number(true[i], "dsc"), of_true]
                cells.append([Cell(text) for text in line])
        pictures.append(Picture(f"expected_dsc_{method}", label, to_png(expected_dsc_scatter(expected, true))))
    caption = (
        "Expected DSC: from the probabilities alone, mean over structures. If low confidence finds bad cases, those "
        "with the lowest expected DSC also have the lowest true DSC. Spearman's rank correlation of the two, with its "
        "95 % interval over patients, and how many of the worst cases, a fifth of all, are among as many of lowest "
        f"expected DSC: {'; '.join(texts)}. The table has at most {LOWEST} cases of each; place 1 is the lowest."
    )
    header = ["", "place", "case", "expected DSC", "true DSC", "place by true DSC"]
    return Section("expected_dsc", "Cases by expected DSC", caption, header, cells, records, pictures)
