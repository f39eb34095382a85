"""Sections of evaluations that a clinician reads: volumes, thresholds, risk and coverage, and cases by expected DSC."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from calib_components.data.overlap import Items, find_shared
from calib_components.errors import InputError, printable
from calib_components.handlers.evaluation_files import Evaluation
from calib_components.tools.report.conclusion import expected_and_true, worst_cases
from calib_components.tools.report.data import Results, Row
from calib_components.tools.report.figures import (
    expected_dsc_scatter,
    risk_coverage_curves,
    threshold_curves,
    volume_agreement,
)
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
    """Return the sections of evaluations of probabilities, with thresholds that were chosen on validation cases."""
    sections = []
    if any(found.thresholds for found in results.evaluations.values()):
        sections = [_thresholds(results, chosen)]
    if results.has("aurc"):  # all have probabilities
        sections = [_volumes(results), *sections, _risk(results), _expected_dsc(results)]
    return sections


def _section(name: str, title: str, caption: str, records: list[dict[str, Any]], pictures: list[Picture]) -> Section:
    """Return a section whose lines are of a method and, where records have them, a structure and a threshold."""
    keys = [key for key in ("structure", "threshold") if key in records[0]]

    def first(record: Record) -> tuple[Cell, ...]:
        mark = "bold" if record.get("chosen") else ""
        return Cell(record["label"]), *(Cell(str(record[key]), mark=mark) for key in keys)

    shown = [r for r in records if "threshold" not in r or r["chosen"] or np.isclose(r["threshold"], SHOWN).any()]
    header, lines = tabulate(shown, first)
    return Section(name, title, caption, ["", *keys, *header], lines, records, pictures)


def _volumes(results: Results) -> Section:
    """Return the segmented and the expected against the true volume of each structure."""
    unit, records, pictures = results.about["volume_unit"], [], []
    for method, label in results.labels.items():
        drawn = {}
        for name in results.structures:
            expected, true, low, high, segmented = (
                results.values(Row(method), f"{measure}_{name}")[0] for measure in (*VOLUMES, "segmented_volume")
            )
            drawn[name] = expected, true, low, high
            measured = {"true_volume": (true, unit)}
            for kind, volume in (("segmented", segmented), ("expected", expected)):
                relative = 100 * np.abs(volume - true) / np.where(true > 0, true, np.nan)
                measured[f"{kind}_volume"] = volume, unit
                measured[f"{kind}_minus_true"] = volume - true, unit
                measured[f"{kind}_relative_error"] = relative, "percent"
            inside = np.where((true > 0) & ~np.isnan(expected), 100.0 * ((low <= true) & (true <= high)), np.nan)
            measured["in_range"] = inside, "percent"
            for measure, (values, of_measure) in measured.items():
                keys = {"method": method, "label": label, "structure": name, "measure": measure, "unit": of_measure}
                records.append(keys | mean_with_interval(values, results.patients())._asdict())
        pictures.append(Picture(f"volumes_{method}", label, to_png(volume_agreement(drawn, unit))))
    caption = (
        f"Means in {unit} with 95 % intervals over patients. Segmented volume: that of the label map. Expected volume: "
        "the sum of the probabilities. In range: cases with the structure whose true volume lies between the volume of "
        "p > .95 and that of p > .05; at least 90 % if probabilities were true and voxels fully dependent."
    )
    return _section("volumes", "Volumes", caption, records, pictures)


def _ratios(results: Results, method: str) -> tuple[Array, dict[tuple[str, str], tuple[Array, Array]]]:
    """Return thresholds, and numerators and denominators of ratios at each, `(cases, T)`, by structure and measure."""
    found, ratios = results.evaluations[method], {}
    assert found.thresholds is not None
    index = _places(results, found)
    for i, structure in enumerate(found.structures):
        counts = found.thresholds
        positive, predicted, dsc = (
            part[index, i].numpy() for part in (counts.true_positive, counts.predicted, counts.dsc)
        )
        true, voxels = (part[index, i, None].expand(predicted.shape).numpy() for part in (counts.true, counts.voxels))
        ratios[structure, "sensitivity"] = positive, true
        ratios[structure, "specificity"] = voxels - true - (predicted - positive), voxels - true
        ratios[structure, "ppv"] = positive, predicted
        ratios[structure, "dsc"] = np.where(true > 0, dsc, 0), true > 0  # a mean over cases
    return found.thresholds.thresholds.numpy(), ratios


def _places(results: Results, found: Evaluation) -> Any:
    """Return where the cases of the results are in an evaluation."""
    return pd.Index(found.cases["case"]).get_indexer(results.patients().index)


def _thresholds(results: Results, chosen: Mapping[str, float]) -> Section:
    """Return sensitivity, specificity, PPV and DSC at some thresholds."""
    records, pictures = [], []
    for method, label in results.labels.items():
        if results.evaluations[method].thresholds is None:
            continue
        thresholds, ratios = _ratios(results, method)
        curves = {structure: pd.DataFrame(index=thresholds) for structure, _ in ratios}
        for (structure, measure), (above, below) in ratios.items():
            estimates = ratio_with_interval(above, below, results.patients())
            curves[structure][measure] = [estimate.mean for estimate in estimates]
            for threshold, estimate in zip(thresholds.tolist(), estimates, strict=True):
                keys = {"method": method, "label": label, "structure": structure, "threshold": round(threshold, 4)}
                is_chosen = bool(np.isclose(threshold, chosen.get(structure, np.nan)))
                unit = "aurc" if 0.999 < estimate.mean < 1 else "dsc"  # digits: specificity is near 1
                records.append(keys | {"chosen": is_chosen, "measure": measure, "unit": unit, **estimate._asdict()})
        pictures.append(Picture(f"thresholds_{method}", label, to_png(threshold_curves(curves, chosen))))
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


def check_apart(cases: Items, others: Items, folder: Path) -> list[str]:
    """Refuse thresholds chosen on the cases under test; return a notice where only their names are the same."""
    shared = find_shared(cases, others)
    if certain := [pair for pair in shared if not pair.is_only_name]:
        raise InputError(
            f"--validation: {folder} has {len(certain)} of the cases or patients under test: {certain[0]}. Give an "
            "evaluation of other patients."
        )
    about = (
        f"{len(shared)} of the cases have names of the validation folder, too. If they are the same, thresholds were"
    )
    return [f"{about} chosen on them."] if shared else []


def choose_thresholds(folder: Path, found: Evaluation, results: Results) -> tuple[dict[str, float], str]:
    """Return the threshold of each structure with the highest mean DSC on validation cases, and a sentence about them.

    Raises:
        InputError: The folder of the validation cases has no thresholds, or those of other structures.
    """
    if found.thresholds is None:
        raise InputError(f"--validation: {folder} has no thresholds.json. Give an evaluation with probabilities.")
    if {*found.structures} != {*results.structures}:
        raise InputError(
            f"--validation: {folder} has the structures {', '.join(found.structures)}, the evaluation "
            f"{', '.join(results.structures)}."
        )
    best = dict(zip(found.structures, found.thresholds.best().tolist(), strict=True))
    chosen = {name: threshold for name, threshold in best.items() if not np.isnan(threshold)}
    (at, ratios), parts = _ratios(results, *results.methods), []
    for name, threshold in chosen.items():
        dsc = np.where(*ratios[name, "dsc"][::-1], np.nan)
        own, usual = (dsc[:, np.abs(at - value).argmin()] for value in (threshold, USUAL))
        change = paired_difference(own, usual, results.patients())
        parts.append(f"{name} {threshold:.2f} (DSC {with_interval(change, 'dsc', True)} against {USUAL})")
    parts += [f"none for {name}, which they lack" for name in results.structures if name not in chosen]
    return chosen, f"Thresholds chosen on the validation cases: {', '.join(parts)}."


def _risk(results: Results) -> Section:
    """Return error rates among the most confident voxels, and the share of errors among the most uncertain ones."""
    records: list[dict[str, Any]] = []
    curves: dict[str, Any] = {}
    for method, label in results.labels.items():
        area, share = (results.values(Row(method), name)[0] for name in ("aurc", "error_share_5"))
        for measure, unit, values in (("aurc", "aurc", area), ("error_share", "percent", 100 * share)):
            estimate = mean_with_interval(values, results.patients())._asdict()
            records.append({"method": method, "label": label, "measure": measure, "unit": unit, **estimate})
        found = results.evaluations[method]
        assert found.risk is not None
        curves[label] = found.coverage, mean_of_defined(found.risk[_places(results, found)])
    caption = (
        "Risk is the error rate among the most confident share of the voxels, the coverage. AURC is the area under "
        "this curve, mean over cases, with its 95 % interval over patients. It falls with fewer errors and with a "
        "better order of the voxels, not with better calibration."
    )
    picture = Picture("risk_coverage", "Risk over coverage", to_png(risk_coverage_curves(curves)))
    return _section("risk_coverage", "Risk and coverage", caption, records, [picture])


def _expected_dsc(results: Results) -> Section:
    """Return the cases by their expected DSC, the lowest first, beside their true DSC."""
    cells, tables, pictures, texts = [], [], [], []
    for method, label in results.labels.items():
        expected, true = expected_and_true(results, Row(method))
        correlation = spearman_with_interval(expected, true, results.patients())
        found, count, _ = worst_cases(expected, true)
        told = f"{found} of {count}" if count else "where equal values leave open which these are"
        texts.append(f"{label} {with_interval(correlation, 'rho')}, {told}")
        cases = [printable(name) for name in results.patients().index]
        table = pd.DataFrame({"method": method, "case": cases, "expected_dsc": expected, "dsc": true})
        places = table["dsc"].rank(method="first")
        tables.append(table.sort_values("expected_dsc", kind="stable"))
        for place, line in enumerate(tables[-1].head(LOWEST).itertuples(), start=1):
            of_true = f"{places[line.Index]:.0f}" if line.dsc == line.dsc else "n/a"
            texts_of_line = [str(place), line.case, number(line.expected_dsc, "dsc"), number(line.dsc, "dsc"), of_true]
            cells.append([Cell(text) for text in (label, *texts_of_line)])
        pictures.append(Picture(f"expected_dsc_{method}", label, to_png(expected_dsc_scatter(expected, true))))
    caption = (
        "Expected DSC: from the probabilities alone, mean over structures. If low confidence finds bad cases, those "
        "with the lowest expected DSC also have the lowest true DSC. Spearman's rank correlation of the two, with its "
        "95 % interval over patients, and how many of the worst cases, a fifth of all, are among as many of lowest "
        f"expected DSC: {'; '.join(texts)}. The table has at most {LOWEST} cases of each; place 1 is the lowest."
    )
    header = ["", "place", "case", "expected DSC", "true DSC", "place by true DSC"]
    return Section("expected_dsc", "Cases by expected DSC", caption, header, cells, pd.concat(tables), pictures)
