"""Sections of the report that a clinician reads: volumes, thresholds, risk and coverage, and cases by expected DSC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from calib_components.errors import InputError, printable
from calib_components.figures import expected_dsc_scatter, risk_coverage_curves, threshold_curves, volume_agreement
from calib_components.handlers.evaluation import read_cases, read_risk_coverage, read_thresholds
from calib_components.metrics import ThresholdCounts
from calib_components.tools.report.conclusion import expected_and_true, worst_cases
from calib_components.tools.report.data import Results, Row
from calib_components.tools.report.page import Cell, Picture, Section, to_png
from calib_components.tools.report.statistics import (
    Array,
    Estimate,
    mean_of_defined,
    mean_with_interval,
    paired_difference,
    ratio_with_interval,
    spearman_with_interval,
)
from calib_components.tools.report.text import interval, number

SHOWN = (0.1, 0.25, 0.5, 0.75, 0.9)  # thresholds in the table; the figure has all
VOLUMES = ("expected", "true", "low", "high")  # as in the figure
COLUMNS = {"expected": "expected_volume", "true": "true_volume", "low": "volume_low", "high": "volume_high"}
USUAL = 0.5
LOWEST = 10  # cases in the table of the lowest expected DSC


def clinical_sections(results: Results, chosen: Mapping[str, float]) -> list[Section]:
    """Return the sections of evaluation folders that have what they need.

    Args:
        results: The evaluations.
        chosen: Threshold of each structure that was chosen on validation cases; empty for none.
    """
    sections = [_volumes(results), _thresholds(results, chosen), _risk(results), _expected_dsc(results)]
    alone = len(results.methods) == 1
    return [
        replace(section, header=section.header[alone:], rows=[row[alone:] for row in section.rows])
        for section in sections
        if section is not None
    ]


def _cell(estimate: Estimate, unit: str, signed: bool = False) -> Cell:
    return Cell(number(estimate.mean, unit, signed), interval(estimate, unit, signed))


def _volumes(results: Results) -> Section | None:
    """Return the segmented and the expected against the true volume of each structure."""
    structures = [name for name in results.structures if results.has(f"expected_volume_{name}")]
    if not structures:
        return None
    unit, patients = results.about["volume_unit"], results.patients()
    cells, records, pictures = [], [], []
    for method in results.methods:
        drawn = {}
        for name in structures:
            values = {part: results.values(Row(method), f"{c}_{name}")[0] for part, c in COLUMNS.items()}
            drawn[name] = [values[part] for part in VOLUMES]
            true = values["true"]
            row = [Cell(results.about["labels"][method]), Cell(name), Cell(number(float(mean_of_defined(true)), unit))]
            record = {"method": method, "structure": name, "unit": unit}
            for kind in ("segmented", "expected"):
                volume = results.values(Row(method), f"{kind}_volume_{name}")[0]
                bias = mean_with_interval(volume - true, patients)
                with np.errstate(divide="ignore", invalid="ignore"):
                    relative = np.where(true > 0, 100 * np.abs(volume - true) / true, np.nan)
                error = mean_with_interval(relative, patients)
                row += [
                    Cell(number(float(mean_of_defined(volume)), unit)),
                    _cell(bias, unit, True),
                    _cell(error, "percent"),
                ]
                for measure, found in (("bias", bias), ("relative_error_percent", error)):
                    ends = {
                        f"{kind}_{measure}{end}": value
                        for end, value in zip(("", "_low", "_high"), found[:3], strict=True)
                    }
                    record |= ends
            present = (true > 0) & ~np.isnan(values["expected"])
            inside = int(np.sum(present & (values["low"] <= true) & (true <= values["high"])))
            cells.append([*row, Cell(f"{inside} of {present.sum()}")])
            records.append({**record, "inside": inside, "cases": int(present.sum())})
        picture = to_png(volume_agreement(drawn, unit))
        pictures.append(Picture(f"volumes_{method}", results.about["labels"][method], picture))
    caption = (
        f"In {unit}. Segmented volume: that of the label map. Expected volume: the sum of the probabilities of the "
        "structure. Bias: mean difference to the true volume; relative error: mean size of the difference in per cent "
        "of the true volume; below both, 95 % intervals over patients. In range: cases that have the structure whose "
        "true volume lies between that of the voxels with p > .95 and that of the voxels with p > .05. If "
        "probabilities were true and voxels fully dependent, at least 90 % would. The expected volume can be above "
        "this range: the sum of many probabilities below .05 can be large."
    )
    header = ["", "structure", "true volume"]
    for kind in ("segmented", "expected"):
        header += [f"{kind} volume", "its bias", "its relative error ↓"]
    return Section("volumes", "Volumes", caption, [*header, "in range"], cells, records, pictures)


def _counts(folder: Path, cases: list[str] | None = None) -> tuple[list[str], ThresholdCounts] | None:
    """Return structures and counts at each threshold of an evaluation, of the given cases; None without them."""
    if not (folder / "thresholds.json").exists():
        return None
    structures, counts = read_thresholds(folder)
    if cases is not None:
        index = _index(folder, cases)
        fields = ("true_positive", "predicted", "true", "voxels")
        counts = replace(counts, **{name: getattr(counts, name)[index] for name in fields})
    return structures, counts


def _index(folder: Path, cases: list[str]) -> list[int]:
    names, _ = read_cases(folder)
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
    cells, records, pictures = [], [], []
    for method in results.methods:
        if (found := _counts(results.folders[method], [*results.places().index])) is None:
            continue
        (structures, counts), label = found, results.about["labels"][method]
        for index, structure in enumerate(structures):
            estimates = {
                name: ratio_with_interval(above, below, results.patients())
                for name, (above, below) in _ratios(counts, index).items()
            }
            for place, threshold in enumerate(counts.thresholds.tolist()):
                is_chosen = bool(np.isclose(threshold, chosen.get(structure, np.nan)))
                notes, mark = ["chosen"] * is_chosen, "bold" * is_chosen
                row = [Cell(label), Cell(structure), Cell(f"{threshold:.2f}", notes, mark)]
                record = {"method": method, "structure": structure, "threshold": round(threshold, 4)}
                for name, of_thresholds in estimates.items():
                    estimate = of_thresholds[place]
                    digits = "aurc" if 0.999 < estimate.mean < 1 else "dsc"  # specificity is near 1
                    row.append(_cell(estimate, digits)._replace(mark=mark))
                    record |= {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
                records.append({**record, "chosen": is_chosen})
                if is_chosen or np.isclose(threshold, SHOWN).any():
                    cells.append(row)
        figure = threshold_curves({name: counts.table(index) for index, name in enumerate(structures)}, chosen)
        pictures.append(Picture(f"thresholds_{method}", label, to_png(figure)))
    if not cells:
        return None
    caption = (
        "A structure is where its probability is above the threshold. Sensitivity, specificity and PPV (positive "
        "predictive value) are of the voxels of all cases together, DSC is the mean over the cases that have the "
        f"structure; below each, its 95 % interval over patients. The usual threshold is {USUAL}. "
    )
    caption += (
        "In bold: the threshold with the highest mean DSC on the validation cases. "
        f"{chosen_thresholds(results, chosen)}"
        if chosen
        else "No threshold was chosen: give the evaluation folder of validation cases with --validation. The best row "
        "of these test cases is no choice: it would be too optimistic."
    )
    header = ["", "structure", "threshold", "sensitivity ↑", "specificity ↑", "PPV ↑", "DSC ↑"]
    return Section("thresholds", "Thresholds", caption, header, cells, records, pictures)


def choose_thresholds(folder: Path, results: Results) -> dict[str, float]:
    """Return the threshold of each structure with the highest mean DSC on validation cases.

    Args:
        folder: Evaluation folder of the validation cases.
        results: The evaluation that thresholds are chosen for.

    Raises:
        InputError: The folder has no thresholds, or those of other structures.
    """
    if (found := _counts(folder)) is None:
        raise InputError(
            f"--validation: {folder} has no thresholds.json. Give an evaluation folder with probabilities."
        )
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
    found = _counts(results.folders[method], [*results.places().index])
    assert found is not None
    structures, counts = found
    at, parts = counts.thresholds.numpy(), []
    for name, threshold in chosen.items():
        index = structures.index(name)
        dsc = np.where(counts.true[:, [index]].numpy() > 0, counts.dsc[:, index].numpy(), np.nan)
        own, usual = (dsc[:, np.abs(at - value).argmin()] for value in (threshold, USUAL))
        change = paired_difference(own, usual, results.patients())
        size = " ".join([number(change.mean, "dsc", True), *interval(change, "dsc", True)])
        parts.append(f"{name} {threshold:.2f} (DSC {size} against {USUAL})")
    parts += [f"none for {name}, which they lack" for name in structures if name not in chosen]
    return f"Thresholds chosen on the validation cases: {', '.join(parts)}."


def _risk(results: Results) -> Section | None:
    """Return error rates among the most confident voxels, and the share of errors among the most uncertain ones."""
    if not results.has("aurc", "error_share_5"):
        return None
    cells, records, risks, coverages = [], [], {}, []
    for method in results.methods:
        values = {name: results.values(Row(method), name)[0] for name in ("aurc", "error_share_5")}
        area = mean_with_interval(values["aurc"], results.patients())
        share = mean_with_interval(100 * values["error_share_5"], results.patients())
        cells.append([Cell(results.about["labels"][method]), _cell(area, "aurc"), _cell(share, "percent")])
        for name, found in (("aurc", area), ("error_share_5_percent", share)):
            records.append({"method": method, "measure": name, **found._asdict()})
        folder = results.folders[method]
        if (folder / "risk_coverage.json").exists():
            coverage, risk = read_risk_coverage(folder)
            coverages.append(coverage)
            if np.array_equal(coverage, coverages[0]):
                risks[results.about["labels"][method]] = mean_of_defined(
                    risk[_index(folder, [*results.places().index])]
                )
    pictures = []
    if risks:
        pictures = [Picture("risk_coverage", "Risk over coverage", to_png(risk_coverage_curves(coverages[0], risks)))]
    caption = (
        "Voxels are ordered by the probability of their predicted class. Risk is the error rate among the most "
        "confident share of them, the coverage; AURC is the area under this curve, mean over cases, with its 95 % "
        "interval over patients. It falls with fewer errors and with a better order, not with better calibration. The "
        "last column: the share of all errors that lie among the 5 % most uncertain voxels of the case."
    )
    header = ["", "AURC ↓", "errors among the 5 % most uncertain voxels ↑"]
    return Section("risk_coverage", "Risk and coverage", caption, header, cells, records, pictures)


def _expected_dsc(results: Results) -> Section | None:
    """Return the cases by their expected DSC, the lowest first, beside their true DSC."""
    if not any(results.has(f"expected_dsc_{name}") for name in results.structures):
        return None
    cells, records, pictures, texts = [], [], [], []
    names = [*results.places().index]
    for method in results.methods:
        label = results.about["labels"][method]
        expected, true = expected_and_true(results, Row(method))
        correlation = spearman_with_interval(expected, true, results.patients())
        found, count, _ = worst_cases(expected, true)
        told = f"{found} of {count}" if count else "where equal values leave open which these are"
        texts.append(" ".join([label, number(correlation.mean, "rho"), *interval(correlation, "rho")]) + f", {told}")
        places = np.argsort(np.argsort(true, kind="stable"), kind="stable") + 1
        for place, i in enumerate(np.argsort(expected, kind="stable"), start=1):
            pair = [number(of[i], "dsc") for of in (expected, true)]
            of_true = "n/a" if np.isnan(true[i]) else str(places[i])
            line = [label, str(place), printable(names[i]), *pair, of_true]
            records.append({"method": method, "case": printable(names[i]), "expected_dsc": expected[i], "dsc": true[i]})
            if place <= LOWEST:
                cells.append([Cell(text) for text in line])
        pictures.append(Picture(f"expected_dsc_{method}", label, to_png(expected_dsc_scatter(expected, true))))
    caption = (
        "Expected DSC: from the probabilities alone, without the ground truth; mean over structures. If low confidence "
        "finds the bad cases, those with the lowest expected DSC, which one would review first, also have the lowest "
        "true DSC. Spearman's rank correlation of the two, with its 95 % interval over patients, and how many of the "
        f"worst cases, a fifth of all, are among as many of lowest expected DSC: {'; '.join(texts)}. The table has at "
        f"most {LOWEST} cases of each; place 1 is the lowest."
    )
    header = ["", "place", "case", "expected DSC", "true DSC", "place by true DSC"]
    return Section("expected_dsc", "Cases by expected DSC", caption, header, cells, records, pictures)
