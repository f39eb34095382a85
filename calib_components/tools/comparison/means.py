"""Sections of the report that show networks without and with their temperature, on each test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from calib_components.figures import reliability_diagram
from calib_components.metrics import CalibrationBins
from calib_components.tools.comparison.cell_settings import OWN, Condition
from calib_components.tools.comparison.page import Picture, Section, TableCell, to_png
from calib_components.tools.comparison.published import RANKED
from calib_components.tools.comparison.results import Method, Results
from calib_components.tools.comparison.statistics import (
    FEWEST_PATIENTS,
    mean_of_defined,
    mean_with_interval,
    paired_difference,
)
from calib_components.tools.comparison.tables import DIFFERENCE, best_marks, heading, interval, number

__all__ = ["diagram_panels", "means_section", "reliability_section", "structures_section", "temperature_section"]

OF_REGIONS = ("ece_all", "ece_predicted", "nll_all")
OF_FOREGROUND = ("ece", "cece", "nll", "brier")
CHANGED = ("ece_all", "ece_predicted", "ece", "nll_all")  # by a temperature, which changes no segmentation
ABOUT_REGIONS = (
    "all: every voxel; predicted: voxels that are predicted as foreground. These are chosen by the prediction alone, "
    "so true probabilities have an ECE of 0 there, up to sampling. foreground: where the ground truth is not "
    "background. Errors in a region that is chosen by the ground truth do not measure calibration: even "
    'true probabilities have an error in it. The small number "if true" is this value, the error if the probabilities '
    "were true; an error below it does not mean better calibration. "
)
ABOUT_TEMPERATURE = (
    "+ T: the same network, its logits divided by the temperature T, which was fitted on the validation split of its "
    "own data (below T: its 95 % interval). T > 1: the network was overconfident there; T < 1: underconfident. The "
    "segmentation stays the same. "
)
ABOUT_FOREGROUND = "ECE, CECE, NLL and Brier score are computed over the ground-truth foreground. "
DIAGRAMS = {"all": "All voxels", "predicted": "Predicted foreground"}


class _Row(NamedTuple):
    """A method in a table of means: its first cell, and what its records have besides."""

    method: Method
    first: TableCell
    fields: Mapping[str, Any] = {}


def means_section(results: Results, test_set: str = "") -> Section:
    """Return the mean of every measure with its interval, without and with temperature.

    Args:
        results: The results.
        test_set: Name of a further test set; empty for the split that is compared, whose means are beside those of the
            paper.
    """
    plain, scaled = (results.at(Condition(test_set, with_temperature)) for with_temperature in (False, True))
    regions = _measured(plain, OF_REGIONS)
    rows = _rows(plain, scaled)
    cells, records = _estimates(rows, ["dsc", "hd95", *regions, *OF_FOREGROUND], plain)
    for row, (method, *_) in zip(cells, rows, strict=True):
        missed, spurious = (sum(getattr(each, what) for each in method.evaluations) for what in ("missed", "spurious"))
        row.append(TableCell(f"{missed} / {spurious}"))
    headings = [heading(measure) for measure in ("dsc", "hd95", *regions)]
    headings += [heading(measure, "foreground" if regions else "") for measure in OF_FOREGROUND]
    header = ["", *headings, "missed / spurious"]
    if test_set:
        patients = len(set(plain.patients))
        caption = (
            f"The same networks and temperatures, on the {len(plain.first.cases)} cases of {patients} patients in "
            f"{test_set}; nothing was fitted on them. Rows and columns are those of the means above."
        )
        caption += "" if patients >= FEWEST_PATIENTS else " These are too few for intervals and marks of the best."
        return Section(f"means_on_{test_set}", f"Means on {test_set}", caption, header, cells, records)
    below = "Below each mean: its 95 % interval"
    below += " and the mean that the paper reports for its own test cases. " if plain.published else ". "
    caption = (
        f"Mean over the cases of the {results.split} split; the best is bold, the second best underlined. {below}"
        f"{ABOUT_TEMPERATURE if scaled.methods else ''}"
        "HD95 is in voxels of the prepared grid, whatever the distance between slices. "
        f"{ABOUT_REGIONS if regions else ABOUT_FOREGROUND}"
        "The last column counts structures that only the ground truth (missed) or only the prediction (spurious) "
        "contains; they have DSC 0 and no HD95. All intervals on this page are over patients: they reflect the "
        "choice of test patients, not the randomness of training."
    )
    return Section("means", "Means", caption, header, cells, records)


def _measured(results: Results, measures: Sequence[str]) -> list[str]:
    """Return which measures there are; results of earlier versions have no regions."""
    return [measure for measure in measures if measure in results.first.columns]


def _rows(plain: Results, scaled: Results) -> list[_Row]:
    """Return a row for each method and, below it, one for the method with its temperature."""
    with_temperature = {method.name: method for method in scaled.methods}
    rows = []
    for method in plain.methods:
        rows.append(_Row(method, TableCell(method.label), {"temperature": "without"} if scaled.methods else {}))
        if (other := with_temperature.get(method.name)) is not None:
            label, notes = _temperature(other)
            rows.append(_Row(other, TableCell(f"{method.label} + {label}", notes), {"temperature": "with"}))
    return rows


def _temperature(method: Method) -> tuple[str, list[str]]:
    """Return the temperature of a method as text, and its interval; of several networks, the range."""
    fits = [cell.temperature for cell in method.cells if cell.temperature is not None]
    low, high = (f"{end(fit.temperature for fit in fits):.2f}" for end in (min, max))
    if len(fits) > 1:
        return f"T {low}" + (f" to {high}" if low != high else ""), []
    return f"T {low}", [] if np.isnan(fits[0].low) else [f"[{fits[0].low:.2f}, {fits[0].high:.2f}]"]


def structures_section(results: Results) -> Section:
    """Return the mean DSC and HD95 of every structure."""
    measures = [f"{metric}_{name}" for metric in ("dsc", "hd95") for name in results.first.structures]
    rows = [_Row(method, TableCell(method.label)) for method in results.methods]
    cells, records = _estimates(rows, measures, results)
    caption = f"Mean over the cases of the {results.split} split where the measure is defined, with its 95 % interval."
    return Section("structures", "Structures", caption, ["", *map(heading, measures)], cells, records)


def _estimates(
    rows: Sequence[_Row], measures: Sequence[str], results: Results
) -> tuple[list[list[TableCell]], list[dict[str, Any]]]:
    """Return the cells and the records of a table of means, with the published ones of the results."""
    cells: list[list[TableCell]] = [[row.first] for row in rows]
    records = []
    has_if_true = any(f"{measure}_if_true" in results.first.columns for measure in measures)
    for measure in measures:
        values = [row.method.values(measure) for row in rows]
        estimates = [mean_with_interval(of_method, results.patients) for of_method in values]
        marks = best_marks(estimates, measure)
        for row, of_method, estimate, mark, line in zip(rows, values, estimates, marks, cells, strict=True):
            method = row.method
            paper = results.published.get(method.name, ()) if not method.runs[0].condition.scaled else ()
            published = dict(zip(RANKED, paper, strict=False)).get(measure)
            notes = interval(estimate, measure)
            if published is not None:
                notes.append(f"paper {number(published, measure)}")
            if_true = None
            if f"{measure}_if_true" in results.first.columns:
                if_true = float(mean_of_defined(method.values(f"{measure}_if_true")))
                notes.append(f"{number(if_true, measure)} if true")
            line.append(TableCell(number(estimate.mean, measure), notes, mark))
            cases = int(np.count_nonzero(~np.isnan(of_method)))
            record = {"method": method.name, "measure": measure, **estimate._asdict(), "cases": cases}
            record |= {"seeds": len({run.settings.seed for run in method.runs}), "published": published}
            records.append({**record, **row.fields, **({"if_true": if_true} if has_if_true else {})})
    return cells, records


def temperature_section(results: Results) -> Section:
    """Return the paired differences with temperature minus without, of every method on every test set."""
    measures = _measured(results, CHANGED)
    rows, records = [], []
    for test_set in ("", *results.test_sets):
        scaled = results.at(Condition(test_set, scaled=True))
        for method in scaled.methods:
            plain = method.at(Condition(test_set))  # the same networks
            label, notes = _temperature(method)
            row = [TableCell(method.label), TableCell(label, notes), TableCell(test_set or f"own {results.split}")]
            for measure in measures:
                difference = paired_difference(method.values(measure), plain.values(measure), scaled.patients)
                notes = interval(difference, measure, DIFFERENCE)
                row.append(TableCell(number(difference.mean, measure, DIFFERENCE), notes))
                record = {"method": method.name, "test_set": test_set, "measure": measure, **difference._asdict()}
                del record["p_value"]
                records.append(record)
            rows.append(row)
    caption = (
        "With temperature minus without, on the same cases: mean difference and its 95 % interval, over patients and "
        "not corrected for multiple comparisons. Negative is better, but for the foreground: the ground truth chooses "
        "it, so its ECE can rise where calibration gets better. T was fitted by the NLL of the validation cases "
        f"(region {results.first.settings.calibration.get('region', 'all')}). "
    )
    for warning, labels in _warnings(results).items():
        caption += f"{', '.join(labels)}: {warning} "
    header = ["", "T", "test set", *(heading(measure, "foreground") for measure in measures)]
    return Section("temperature", "What temperature changes", caption.strip(), header, rows, records)


def _warnings(results: Results) -> dict[str, list[str]]:
    """Return what to know of the temperatures, and the methods that it is said of."""
    labels: dict[str, list[str]] = {}
    for method in results.methods:
        for fit in (cell.temperature for cell in method.cells if cell.temperature is not None):
            for warning in fit.warnings():
                labels[warning] = list(dict.fromkeys([*labels.get(warning, []), method.label]))
    return labels


def reliability_section(results: Results) -> Section:
    """Return reliability diagrams of the predicted class: over regions that the prediction chooses, if there are any,
    without and with temperature; otherwise over the ground-truth foreground.
    """
    has_regions = all(name in results.first.evaluations[0].regions for name in DIAGRAMS)
    pictures = []
    for method in results.methods:
        if has_regions:
            figure = reliability_diagram(diagram_panels(method), bands=True)
        else:
            figure = reliability_diagram(_sum([evaluation.bins for evaluation in method.evaluations]))
        pictures.append(Picture(f"reliability_{method.name}", method.label, to_png(figure)))
    over = (
        "all voxels, and over those that are predicted as foreground," if has_regions else "the ground-truth foreground"
    )
    caption = (
        f"Accuracy over confidence of the predicted class, over {over} {'' if has_regions else 'voxels '}of all cases "
        "and seeds. The ECE in each title is pooled over these voxels, whereas the tables show means over cases."
    )
    if has_regions:
        caption += (
            " + T: with temperature. The dark bands hold 95 % of the accuracies that true probabilities would have if "
            "voxels were independent, which those of one image are not."
        )
    return Section("reliability", "Reliability diagrams", caption, pictures=pictures)


def diagram_panels(method: Method) -> dict[str, CalibrationBins]:
    """Return the bins of each region without and with temperature, by the title of their panel."""
    panels = {}
    for region, title in DIAGRAMS.items():
        for condition, suffix in ((OWN, ""), (Condition(scaled=True), " + T")):
            if evaluations := method.at(condition).evaluations:
                bins = _sum([evaluation.regions[region] for evaluation in evaluations])
                if bins.count.sum() > 0:  # a network may predict no foreground at all
                    panels[title + suffix] = bins
    return panels


def _sum(bins: Sequence[CalibrationBins]) -> CalibrationBins:
    first, *rest = bins
    return sum(rest, first)
