"""The report of a comparison of losses, of several comparisons, or of evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calib_components.errors import InputError, check_choice
from calib_components.tools.report.clinical import choose_thresholds, chosen_thresholds, clinical_sections
from calib_components.tools.report.conclusion import conclude_differences, conclude_one
from calib_components.tools.report.data import WITH, WITHOUT, Results, write_compact
from calib_components.tools.report.overview import calibration_ranks_section, ranks_section, report_datasets
from calib_components.tools.report.page import write_report
from calib_components.tools.report.published import dataset_of
from calib_components.tools.report.readers import read_cells, read_evaluation, read_evaluations
from calib_components.tools.report.sections import (
    cases_sections,
    cells_section,
    differences,
    differences_section,
    logits_section,
    means_section,
    reference_pairs,
    reliability_section,
    structures_section,
    temperature_section,
)
from calib_components.tools.report.statistics import FEWEST_PATIENTS
from calib_components.tools.report.text import COMPARED, RANKED, SHOWN, TRUSTED

REFERENCE = "nacl"
PICTURED = 3  # methods whose cases are shown; those of the others are folded away
SMOOTH = ("smooth_ece_all", "smooth_ece_predicted")  # shown of evaluations
FEW = 30  # patients
ABOUT_FEW = (
    "Intervals over few patients are too narrow: in simulations with 8 and 16 patients, they held the mean in 87 and "
    "92 %, that of skewed measures such as HD95 in about 78 and 83 %."
)
ABOUT_SHIFT = (
    "Of other origin than the training data (shift): {}. Nothing was fitted on these cases. A network can be more "
    "wrong and surer of it there, and a temperature can help less or do harm."
)


def report(
    results: Path,
    out: Path = Path("report"),
    reference: str | None = None,
    overwrite: bool = False,
    compact: Path | None = None,
) -> None:
    """Write tables and figures of a comparison. Arguments and errors as in `report_folders`."""
    found = read_cells(results)
    if reference is not None:
        check_choice("--reference", reference, found.about["planned"])
    if compact is not None:
        write_compact(found, compact)
    name, data, notices = reference or REFERENCE, dataset_of(found), _notices(found)
    if name not in found.methods and len(found.methods) > 1:
        notices.append(f"No differences: {name} is not among the finished methods. Choose --reference.")
    title = "Losses compared: " + (data.upper() if data else ", ".join(found.structures))
    _write(found, title, name, notices, out, overwrite)


def report_evaluations(
    folders: Sequence[Path],
    out: Path = Path("report"),
    validation: Path | None = None,
    reference: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write tables and figures of evaluation folders, on the cases that all have. Arguments as in `report_folders`."""
    found = read_evaluations(folders)
    names = {label: name for name, label in found.labels.items()}
    if reference is not None:
        check_choice("--reference", reference, names)
    if validation is not None and len(folders) > 1:
        raise InputError("--validation needs one evaluation folder: thresholds are those of one network.")
    notices = [*found.about["notices"], *_notices(found)]
    if validation is not None and (both := {*read_evaluation(validation)[0]["patient"]} & {*found.patients()}):
        notices.append(f"{len(both)} of the patients are in the validation folder too: thresholds were chosen on them.")
    title = f"{'Evaluations compared:' if len(names) > 1 else 'Is it calibrated?'} {', '.join(names)}"
    _write(found, title, names[reference] if reference else found.methods[0], notices, out, overwrite, validation)


def _write(
    found: Results,
    title: str,
    reference: str,
    notices: Sequence[str],
    out: Path,
    overwrite: bool,
    validation: Path | None = None,
) -> None:
    """Write the report of methods that are compared with one of them, or of one method."""
    are_evaluations = "notices" in found.about
    shown = (*SHOWN, *SMOOTH) if are_evaluations else SHOWN
    measures, sets = [measure for measure in COMPARED if found.has(measure)], ("", *found.test_sets)
    sections, conclusion = [means_section(found, shown, test_set) for test_set in sets], ""
    if any(row.temperature == WITH for row in found.groups):
        sections.append(temperature_section(found, measures))
    if len(found.methods) == 1:
        conclusion = conclude_one(found)
    elif reference in found.methods:
        for test_set in sets:
            table = differences(found, reference_pairs(found, reference, test_set), measures)
            conclusion = conclusion or conclude_differences(found, reference, table)
            if len(table):
                sections.append(differences_section(found, reference, table, test_set))
    if len(found.rows(temperatures=[WITH])) > 1:
        sections.append(calibration_ranks_section(found))
    if len(found.methods) > 1:
        sections.append(ranks_section(found, TRUSTED if are_evaluations and found.has("ece_all") else RANKED))
    if found.has("ece_all"):
        sections.append(reliability_section(found))
    if found.about.get("magnitudes"):
        sections.append(logits_section(found))
    sections.append(structures_section(found))
    if are_evaluations:
        chosen = {} if validation is None else choose_thresholds(validation, found)
        if chosen:
            conclusion += f" {chosen_thresholds(found, chosen)}"
        sections += clinical_sections(found, chosen)
    elif not found.cells.empty:
        sections.append(cells_section(found))
    cases = cases_sections(found, reference)
    write_report(title, conclusion, " ".join(notices), [*cases[:PICTURED], *sections], out, cases[PICTURED:], overwrite)


def _notices(results: Results) -> list[str]:
    """Return what a reader should know before the numbers."""
    about, notices, number = results.about, [], len({*results.patients()})
    if number < FEWEST_PATIENTS:
        notices.append(
            f"{results.count()}: intervals, tests and marks of the best need at least {FEWEST_PATIENTS}. "
            "Cross-validation (compare_losses --folds) tests every patient."
        )
    elif number < FEW and "notices" in about:
        notices.append(ABOUT_FEW)
    if results.test_sets:
        notices.append(ABOUT_SHIFT.format(", ".join(results.test_sets)))
    for test_set in results.test_sets:
        evaluated = [row.method for row in results.rows(test_set)]
        if lacking := [label for name, label in results.labels.items() if name not in evaluated]:
            notices.append(f"Not evaluated on {test_set}: {', '.join(lacking)}.")
    if unfinished := about.get("unfinished_test_sets"):
        notices.append(f"Not evaluated with all folds yet: {', '.join(unfinished)}.")
    if missing := about.get("missing"):
        notices.append(f"Not finished yet: {'; '.join(missing)}.")
    rows = results.rows(temperatures=[WITHOUT])
    seeds = {results.label(row): ", ".join(map(str, sorted(results.groups[row]["seed"].unique()))) for row in rows}
    if len(set(seeds.values())) > 1:
        listed = "; ".join(f"{label} {numbers}" for label, numbers in seeds.items())
        notices.append(f"Losses have different seeds, so differences and ranks are not entirely fair: {listed}.")
    return notices


def report_folders(
    *folders: Path,
    out: Path = Path("report"),
    reference: str | None = None,
    validation: Path | None = None,
    compact: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write tables and figures of a comparison of losses, of several comparisons, or of evaluations.

    `index.html` is one page that holds all its figures and needs no network. `report.md` and the CSV files hold the
    same tables, and the PNG files the figures. Cells that are not finished are named and left out.

    Args:
        folders: The results folder of compare_losses, or its compact form; several of them, whose data sets are ranked
            together; or one or several evaluation folders, which are compared on their common cases.
        out: Folder for the report.
        reference: Method, or name of the evaluation folder, that the others are compared with; default: nacl, or the
            first folder. Not for several results folders, whose methods are ranked.
        validation: Evaluation folder of validation cases, on which the thresholds of one network are chosen; default:
            none are chosen.
        compact: Folder for a compact form of the results of one comparison; default: none is written.
        overwrite: Whether `out` may hold other files.

    Raises:
        InputError: A file is missing or broken, results cannot be compared, an option is unknown or does not go with
            these folders, or `out` holds other files or cannot be written.
    """
    if not folders or any((folder / "cases.csv").exists() for folder in folders):
        if compact is not None:
            raise InputError("--compact needs the results of compare_losses.")
        report_evaluations(folders, out, validation, reference, overwrite)
        return
    if validation is not None:
        raise InputError("--validation needs an evaluation folder, not results of compare_losses.")
    if len(folders) == 1:
        report(folders[0], out, reference, overwrite, compact)
        return
    if reference is not None or compact is not None:
        raise InputError("--reference and --compact need one results folder: methods of several are ranked.")
    report_datasets(folders, out, overwrite)
