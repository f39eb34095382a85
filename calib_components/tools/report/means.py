"""Sections of the report that show networks without and with their temperature, on each test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from calib_components.figures import mean_intervals, reliability_diagram
from calib_components.metrics import CalibrationBins
from calib_components.tools.compare.cell_settings import Condition
from calib_components.tools.report.measured import Comparison, Method
from calib_components.tools.report.page import Picture, Section, TableCell, to_png
from calib_components.tools.report.published import RANKED
from calib_components.tools.report.results import Results, TrainedMethod
from calib_components.tools.report.statistics import (
    FEWEST_PATIENTS,
    mean_of_defined,
    mean_with_interval,
    paired_difference,
)
from calib_components.tools.report.tables import DIFFERENCE, best_marks, heading, interval, number

__all__ = [
    "ABOUT_FOUND_IN_ONE",
    "ABOUT_FURTHER",
    "ABOUT_REGIONS",
    "FOUND_IN_ONE",
    "Row",
    "count_found_in_one",
    "diagram_panels",
    "mean_rows",
    "means_of_structures",
    "means_section",
    "region_diagrams",
    "reliability_section",
    "structures_section",
    "temperature_section",
]

OF_REGIONS = ("ece_all", "ece_predicted", "ece_plausible", "nll_all", "brier_all")
OF_FOREGROUND = ("ece", "cece", "nll", "brier")
# By a temperature, which changes no segmentation.
CHANGED = ("ece_all", "ece_predicted", "ece_plausible", "ece", "nll_all")
ABOUT_REGIONS = (
    "all: every voxel; predicted: voxels that are predicted as foreground. These are chosen by the prediction alone, "
    "so true probabilities have an ECE of 0 there, up to sampling. foreground: where the ground truth is not "
    "background. Errors in a region that is chosen by the ground truth do not measure calibration: even "
    'true probabilities have an error in it. The small number "if true" is this value, the error if the probabilities '
    "were true; an error below it does not mean better calibration. "
)
ABOUT_FURTHER = {
    "ece_plausible": (
        "plausible: where the probability of foreground is above .05; of a method that is nowhere certain, nearly all "
        "voxels, which cannot be compared. "
    ),
    "ece_predicted_band": "predicted_band: at most 2 voxels from a border between predicted classes. ",
}
ABOUT_TEMPERATURE = (
    "+ T: the same network, its logits divided by the temperature T, which was fitted on the validation split of its "
    "own data (below T: its 95 % interval; of several seeds, from the lowest T to the highest). T > 1: the network was "
    "overconfident there; T < 1: underconfident. The segmentation stays the same. "
)
ABOUT_TEMPERATURE_OF_FOLDS = (
    "Here T is one number for the networks of all folds, fitted on the validation splits of all. Each test patient "
    "is a validation patient of another network, so results with T are slightly optimistic. "
)
ABOUT_FOREGROUND = "ECE, CECE, NLL and Brier score are computed over the ground-truth foreground. "
ABOUT_DIAGRAMS = (
    "Accuracy over confidence of the predicted class, over {}. The accuracy is where blue ends, or yellow on top of "
    "it: there the network is underconfident. The ECE in each title is pooled over these voxels, whereas the tables "
    "show means over cases."
)
ABOUT_PATIENTS = (
    "All intervals on this page are over patients: they reflect the choice of test patients, not the randomness of "
    "training."
)
ABOUT_SEEDS = (
    "A value of a case, and the number of missed and spurious structures, is the mean over the seeds. Intervals are "
    "over seeds and patients, by a bootstrap of two levels: each resample draws seeds of a method and patients, with "
    "replacement; they are over patients alone for a method of one seed. Few seeds tell little of what another would "
    "do. p-values and the intervals of mean-case-ranks are over patients alone."
)
FOUND_IN_ONE = "missed / spurious"
ABOUT_FOUND_IN_ONE = (
    "The last column counts structures that only the ground truth (missed) or only the prediction (spurious) "
    "contains; they have DSC 0 and no HD95."
)
DIAGRAMS = {"all": "All voxels", "predicted": "Predicted foreground"}
DRAWN = ("nll_all", "ece_all", "ece_predicted")


class Row(NamedTuple):
    """A method in a table of means.

    Attributes:
        method: The method.
        first: First cell of the row.
        fields: What its records have besides, the same in all.
        seeds: Number of seeds; None for a network that was not trained here.
        published: Means that the paper reports, by measure.
    """

    method: Method
    first: TableCell
    fields: Mapping[str, Any] = {}
    seeds: int | None = None
    published: Mapping[str, float] = {}


def means_section(results: Results, test_set: str = "") -> Section:
    """Return the mean of every measure with its interval, without and with temperature.

    Args:
        results: The results.
        test_set: Name of a further test set; empty for the split that is compared, whose means are beside those of the
            paper.
    """
    plain, scaled = (results.at(Condition(test_set, with_temperature)) for with_temperature in (False, True))
    regions = plain.measured(OF_REGIONS)
    rows = _rows(plain, scaled)
    measures = ("dsc", "hd95", *regions, *OF_FOREGROUND)
    cells, records = mean_rows(rows, measures, plain)
    for line, counts in zip(cells, count_found_in_one(rows), strict=True):
        line.append(counts)
    header = ["", *(heading(measure, "foreground" if regions else "") for measure in measures), FOUND_IN_ONE]
    name, pictures, patients = f"means_on_{test_set}" if test_set else "means", [], len(set(plain.patients))
    if plain.has_regions and patients >= FEWEST_PATIENTS:
        pictures = [Picture(name, "Means with 95 % intervals; hollow: with temperature", _drawn(rows, plain))]
    if test_set:
        caption = (
            f"The same networks and temperatures, on the {len(plain.first.cases)} cases of {patients} patients in "
            f"{test_set}; nothing was fitted on them. Rows and columns are those of the means above."
        )
        caption += "" if patients >= FEWEST_PATIENTS else " These are too few for intervals and marks of the best."
        return Section(name, f"Means on {test_set}", caption, header, cells, records, pictures)
    below = "Below each mean: its 95 % interval"
    below += " and the mean that the paper reports for its own test cases. " if plain.published else ". "
    about = "".join(text for measure, text in ABOUT_FURTHER.items() if measure in regions)
    caption = (
        f"Mean over the cases of the {results.split} split; the best is bold, the second best underlined. {below}"
        f"{ABOUT_TEMPERATURE if scaled.methods else ''}"
        f"{ABOUT_TEMPERATURE_OF_FOLDS if scaled.methods and results.first.settings.folds else ''}"
        "HD95 is in voxels of the prepared grid, whatever the distance between slices. "
        f"{ABOUT_REGIONS + about if regions else ABOUT_FOREGROUND}"
        f"{ABOUT_FOUND_IN_ONE} {ABOUT_SEEDS if results.has_several_runs else ABOUT_PATIENTS}"
    )
    return Section(name, "Means", caption, header, cells, records, pictures)


def _drawn(rows: Sequence[Row], plain: Results) -> bytes:
    """Return the picture of the means of measures that score probabilities."""
    panels = {
        heading(measure): [mean_with_interval(row.method.by_run(measure), plain.patients) for row in rows]
        for measure in plain.measured(DRAWN)
    }
    hollow = [row.fields.get("temperature") == "with" for row in rows]
    labels = [row.method.label + " + T" * is_hollow for row, is_hollow in zip(rows, hollow, strict=True)]
    return to_png(mean_intervals(panels, labels, hollow))


def _rows(plain: Results, scaled: Results) -> list[Row]:
    """Return a row for each method and, below it, one for the method with its temperature."""
    with_temperature = {method.name: method for method in scaled.methods}
    rows = []
    for method in plain.methods:
        published = dict(zip(RANKED, plain.published.get(method.name, ()), strict=False))
        fields = {"temperature": "without"} if scaled.methods else {}
        rows.append(Row(method, TableCell(method.label), fields, _seeds(method), published))
        if (other := with_temperature.get(method.name)) is not None:
            label, notes = _temperature(other)
            first = TableCell(f"{method.label} + {label}", notes)
            rows.append(Row(other, first, {"temperature": "with"}, _seeds(other)))
    return rows


def _seeds(method: TrainedMethod) -> int:
    return len({run.settings.seed for run in method.runs})


def _temperature(method: TrainedMethod) -> tuple[str, list[str]]:
    """Return the temperature of a method as text, and its interval; of several networks, the range."""
    firsts = [run.cells[0].temperature for run in method.runs]  # all folds of a run have the same
    fits = [fit for fit in firsts if fit is not None]
    low, high = (f"{end(fit.temperature for fit in fits):.2f}" for end in (min, max))
    if len(fits) > 1:
        return f"T {low}" + (f" to {high}" if low != high else ""), []
    return f"T {low}", [] if np.isnan(fits[0].low) else [f"[{fits[0].low:.2f}, {fits[0].high:.2f}]"]


def structures_section(results: Results) -> Section:
    """Return the mean DSC and HD95 of every structure."""
    rows = [Row(method, TableCell(method.label), seeds=_seeds(method)) for method in results.methods]
    return means_of_structures(rows, results, f"the {results.split} split")


def means_of_structures(rows: Sequence[Row], compared: Comparison, cases: str) -> Section:
    """Return the mean DSC and HD95 of every structure.

    Args:
        rows: The methods.
        compared: The comparison that they are from.
        cases: Says which cases these are.
    """
    measures = [f"{metric}_{name}" for metric in ("dsc", "hd95") for name in compared.first.structures]
    cells, records = mean_rows(rows, measures, compared)
    caption = f"Mean over the cases of {cases} where the measure is defined, with its 95 % interval."
    return Section("structures", "Structures", caption, ["", *map(heading, measures)], cells, records)


def mean_rows(
    rows: Sequence[Row], measures: Sequence[str], compared: Comparison
) -> tuple[list[list[TableCell]], list[dict[str, Any]]]:
    """Return the cells and the records of a table of means.

    Args:
        rows: The methods.
        measures: The columns.
        compared: The comparison that they are from.
    """
    cells: list[list[TableCell]] = [[row.first] for row in rows]
    records = []
    has_if_true = any(f"{measure}_if_true" in compared.first.columns for measure in measures)
    for measure in measures:
        values = [row.method.values(measure) for row in rows]
        estimates = [mean_with_interval(row.method.by_run(measure), compared.patients) for row in rows]
        marks = best_marks(estimates, measure)
        for row, of_method, estimate, mark, line in zip(rows, values, estimates, marks, cells, strict=True):
            published = row.published.get(measure)
            notes = interval(estimate, measure)
            if published is not None:
                notes.append(f"paper {number(published, measure)}")
            if_true = None
            if f"{measure}_if_true" in compared.first.columns:
                if_true = float(mean_of_defined(row.method.values(f"{measure}_if_true")))
                notes.append(f"{number(if_true, measure)} if true")
            line.append(TableCell(number(estimate.mean, measure), notes, mark))
            cases = int(np.count_nonzero(~np.isnan(of_method)))
            record = {"method": row.method.name, "measure": measure, **estimate._asdict(), "cases": cases}
            if row.seeds is not None:
                record |= {"seeds": row.seeds, "published": published}
            records.append({**record, **row.fields, **({"if_true": if_true} if has_if_true else {})})
    return cells, records


def count_found_in_one(rows: Sequence[Row]) -> list[TableCell]:
    """Return how many structures are missed and spurious in each row, the mean over runs."""
    means = [np.mean([run.found_in_one for run in row.method.runs], axis=0) for row in rows]
    return [TableCell(" / ".join(f"{round(float(number), 1):g}" for number in pair)) for pair in means]


def temperature_section(results: Results) -> Section:
    """Return the paired differences with temperature minus without, of every method on every test set."""
    measures = results.measured(CHANGED)
    rows, records = [], []
    for test_set in ("", *results.test_sets):
        scaled = results.at(Condition(test_set, scaled=True))
        for method in scaled.methods:
            plain = method.at(Condition(test_set))  # the same networks
            label, notes = _temperature(method)
            row = [TableCell(method.label), TableCell(label, notes), TableCell(test_set or f"own {results.split}")]
            for measure in measures:
                difference = paired_difference(
                    method.by_run(measure), plain.by_run(measure), scaled.patients, same_runs=True
                )
                notes = interval(difference, measure, DIFFERENCE)
                row.append(TableCell(number(difference.mean, measure, DIFFERENCE), notes))
                record = {"method": method.name, "test_set": test_set, "measure": measure, **difference._asdict()}
                del record["p_value"]
                records.append(record)
            rows.append(row)
    caption = (
        "With temperature minus without, on the same cases: mean difference and its 95 % interval, over "
        f"{results.resampled} and not corrected for multiple comparisons. Negative is better, but for the foreground: "
        "the ground truth chooses it, so its ECE can rise where calibration gets better. T was fitted by the NLL of "
        f"the validation cases (region {results.first.settings.calibration.get('region', 'all')}). "
    )
    for warning, labels in _warnings(results).items():
        caption += f"{'; '.join(labels)}: {warning} "
    header = ["", "T", "test set", *(heading(measure, "foreground") for measure in measures)]
    return Section("temperature", "What temperature changes", caption.strip(), header, rows, records)


def _warnings(results: Results) -> dict[str, list[str]]:
    """Return what to know of the temperatures, and the methods that it is said of."""
    labels: dict[str, list[str]] = {}
    for method in results.methods:
        several = len(method.runs) > 1
        for cell in method.cells:
            label = f"{method.label}, seed {cell.settings.seed}" if several else method.label
            for warning in cell.temperature.warnings() if cell.temperature is not None else ():
                labels[warning] = list(dict.fromkeys([*labels.get(warning, []), label]))
    return labels


def reliability_section(results: Results) -> Section:
    """Return reliability diagrams of the predicted class: over regions that the prediction chooses, if there are any,
    without and with temperature; otherwise over the ground-truth foreground.
    """
    if results.has_regions:
        return region_diagrams(results, "all cases and seeds", " + T: with temperature.")
    pictures = []
    for method in results.methods:
        first, *rest = (evaluation.bins for evaluation in method.evaluations)
        pictures.append(
            Picture(f"reliability_{method.name}", method.label, to_png(reliability_diagram(sum(rest, first))))
        )
    caption = ABOUT_DIAGRAMS.format("the ground-truth foreground voxels of all cases and seeds")
    return Section("reliability", "Reliability diagrams", caption, pictures=pictures)


def region_diagrams(compared: Comparison, cases: str, about: str = "") -> Section:
    """Return reliability diagrams of the predicted class over all voxels and over the predicted foreground.

    Args:
        compared: The methods.
        cases: Says which cases these are.
        about: What the diagrams show besides.
    """
    pictures = []
    for method in compared.methods:
        if panels := diagram_panels(method):
            figure = reliability_diagram(panels, bands=True)
            for axes in figure.axes:
                axes.title.set_fontsize("medium")  # those of neighbours do not touch
            pictures.append(Picture(f"reliability_{method.name}", method.label, to_png(figure)))
    over = f"all voxels, and over those that are predicted as foreground, of {cases}"
    caption = (
        f"{ABOUT_DIAGRAMS.format(over)}{about} The dark bands hold 95 % of the accuracies that true probabilities "
        "would have if voxels were independent, which those of one image are not."
    )
    return Section("reliability", "Reliability diagrams", caption, pictures=pictures)


def diagram_panels(method: Method) -> dict[str, CalibrationBins]:
    """Return the bins of each region without and with temperature, by the title of their panel."""
    panels = {}
    for region, title in DIAGRAMS.items():
        for suffix, variant in method.variants.items():
            bins = variant.bins(region)
            if bins.count.sum() > 0:  # a network may predict no foreground at all
                panels[title + suffix] = bins
    return panels
