"""The report of a comparison or of evaluations: one page, the same tables as Markdown and CSV, and the figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calib_components.errors import InputError, nearest
from calib_components.tools.compare.cell_settings import Condition
from calib_components.tools.report.clinical import choose_thresholds, chosen_thresholds
from calib_components.tools.report.conclusion import conclude
from calib_components.tools.report.evaluation_sections import evaluation_sections
from calib_components.tools.report.evaluations import (
    FolderEvaluation,
    read_evaluation,
    read_evaluations,
    shared_patients,
)
from calib_components.tools.report.means import (
    means_section,
    reliability_section,
    structures_section,
    temperature_section,
)
from calib_components.tools.report.overview import report_datasets
from calib_components.tools.report.published import METRICS
from calib_components.tools.report.report_files import (
    CALIBRATED,
    COMPARED,
    LOSSES,
    OWN_FOLDER,
    check_outside,
    write_report,
)
from calib_components.tools.report.results import Results, read_results
from calib_components.tools.report.sections import (
    cases_sections,
    cells_section,
    differences_section,
    logits_section,
    ranks_section,
)
from calib_components.tools.report.seeds import calibration_ranks_section, conditions_section, variation_section
from calib_components.tools.report.statistics import FEWEST_PATIENTS

__all__ = ["read_validation", "report", "report_evaluations", "report_folders"]

REFERENCE = "nacl"
FOREGROUND_ONLY = " All without temperature; calibration over the ground-truth foreground."
ABOUT_CONTOURS = (
    "and the entropy of its probabilities. Contours have the colours of the classes in the figure of the logits."
)


def report(results: Path, out: Path = Path("report"), reference: str | None = None) -> None:
    """Write tables and figures of a comparison.

    `index.html` is one page that holds all its figures and needs no network. `report.md` and the CSV files hold the
    same tables, and the PNG files the figures. Cells that are not finished are named and left out. The same results
    give the same bytes. A new report appears as a whole; the files of an earlier one are replaced, the page last.

    Args:
        results: Folder that compare_losses wrote.
        out: Folder for the report.
        reference: Method that the others are compared with; default: nacl.

    Raises:
        InputError: A file of the results is missing or broken, the reference is unknown, or the folder holds other
            files or cannot be written.
    """
    found = read_results(results)
    check_outside(out, results, found.planned)
    if reference is not None and reference not in found.planned:
        raise InputError(
            f"--reference: expected a method, {', '.join(found.planned)}, got {reference!r}"
            f"{nearest(reference, found.planned)}"
        )
    title = LOSSES + (found.dataset.upper() if found.dataset else ", ".join(found.first.structures))
    base = next((method for method in found.methods if method.name == (reference or REFERENCE)), None)
    about = FOREGROUND_ONLY if "ece_all" in found.first.columns else ""
    sections = [means_section(found), *(means_section(found, test_set) for test_set in found.test_sets)]
    if found.at(Condition(scaled=True)).methods:
        sections.append(temperature_section(found))
    if base is not None and len(found.methods) > 1:
        measures = (*found.concluded, *METRICS)
        sections.append(differences_section(found, base, measures, " All without temperature." if about else ""))
        if found.at(Condition(scaled=True)).methods:
            evaluated = [name for name in ("", *found.test_sets) if base.at(Condition(name)).runs]
            sections += [conditions_section(found, base, name) for name in evaluated]
    if found.has_several_runs:
        sections.append(variation_section(found))
    if found.has_regions and len(found.at(Condition(scaled=True)).methods) > 1:
        sections.append(calibration_ranks_section(found))
    if len(found.methods) > 1:
        sections.append(ranks_section(found, about=about))
    sections += [reliability_section(found), logits_section(found), structures_section(found), cells_section(found)]
    notice = " ".join(_notices(found, None if base else reference or REFERENCE))
    cases = cases_sections(found, base, ABOUT_CONTOURS)
    write_report(title, conclude(found, base), notice, cases, sections, out)


def report_evaluations(
    folders: Sequence[Path],
    out: Path = Path("report"),
    validation: Path | None = None,
    reference: str | None = None,
) -> None:
    """Write tables and figures of one evaluation folder, or of several on the cases that all have.

    Files, and what holds of them, are as for `report`.

    Args:
        folders: What the evaluation of a bundle or evaluate_predictions wrote.
        out: Folder for the report.
        validation: Evaluation folder of validation cases, which chooses the thresholds of the one network; default:
            none are chosen.
        reference: Name of the folder that the others are compared with; default: the first.

    Raises:
        InputError: A file of the folders is missing or broken, they cannot be compared, the reference is unknown, or
            the folder of the report holds other files or cannot be written.
    """
    found = read_evaluations(folders)
    for folder in (source.resolve() for source in folders):
        if out.resolve() in (folder, folder / "cases", *folder.parents):
            raise InputError(f"{OWN_FOLDER}, got {out}, which holds an evaluation")
    labels = [method.label for method in found.methods]
    if reference is not None and reference not in labels:
        raise InputError(
            f"--reference: expected a name, {', '.join(labels)}, got {reference!r}{nearest(reference, labels)}"
        )
    base = found.methods[0 if reference is None else labels.index(reference)]
    several = len(labels) > 1
    if validation is not None and several:
        raise InputError(
            "--validation: expected one evaluation folder with it, since it is of one network, got several"
        )
    evaluation = found.methods[0].evaluation
    if validation is not None and evaluation.thresholds is None:
        raise InputError(f"--validation: expected probabilities, got {folders[0]}, which has no thresholds.json")
    chosen_on = (
        None
        if validation is None
        else read_validation(validation, evaluation.threshold_structures, evaluation.channels)
    )
    sections = evaluation_sections(found, base if several else None, chosen_on)
    title = COMPARED + ", ".join(labels) if several else CALIBRATED + labels[0]
    notices = list(found.notices)
    if len(set(found.patients)) < FEWEST_PATIENTS:
        notices.append(f"{found.patient_count}: intervals and tests need at least {FEWEST_PATIENTS}.")
    if chosen_on is not None and (both := shared_patients(chosen_on, evaluation)):
        notices.append(
            f"{len(both)} of the patients are, by their names, in the validation folder too, so the thresholds were "
            "chosen on them."
        )
    cases = cases_sections(found, base, "and the entropy of its probabilities, if there are any.")
    conclusion = conclude(found, base)
    if chosen_on is not None:
        conclusion += f" {chosen_thresholds(found, choose_thresholds(chosen_on))}"
    write_report(title, conclusion, " ".join(notices), cases, sections, out)


def read_validation(folder: Path, structures: Sequence[str], channels: str = "") -> FolderEvaluation:
    """Read the evaluation of validation cases, which chooses a threshold for each structure.

    Args:
        folder: The evaluation folder.
        structures: Names of the structures of the cases that the thresholds are for.
        channels: What their probabilities are of, see `FolderEvaluation`.

    Raises:
        InputError: A file is missing or broken, or thresholds are of other structures or channels.
    """
    if not (folder / "cases.csv").exists():
        raise InputError(f"--validation: expected an evaluation folder, got {folder}, which has no cases.csv")
    validation = read_evaluation(folder)
    if validation.thresholds is None:
        raise InputError(f"{folder / 'thresholds.json'}: expected thresholds, got no such file; evaluate again")
    if {*validation.threshold_structures} != {*structures}:
        raise InputError(
            f"--validation: expected the structures {', '.join(structures)}, got those of {folder}, "
            f"{', '.join(validation.threshold_structures)}"
        )
    if channels and validation.channels and channels != validation.channels:
        raise InputError(f"--validation: expected {channels}, got {validation.channels} in {folder}")
    return validation


def report_folders(
    *folders: Path, out: Path = Path("report"), reference: str | None = None, validation: Path | None = None
) -> None:
    """Write tables and figures of a comparison of losses, of several comparisons, or of evaluations.

    Args:
        folders: The results folder of compare_losses; several of them, whose data sets are ranked together; or one or
            several evaluation folders, which are compared on their common cases.
        out: Folder for the report.
        reference: Method, or name of the evaluation folder, that the others are compared with; default: nacl, or the
            first folder. Not for several results folders, whose methods are ranked.
        validation: Evaluation folder of validation cases, on which the thresholds of one network are chosen; default:
            none are chosen.

    Raises:
        InputError: See `report`, `report_datasets` and `report_evaluations`.
    """
    if any((folder / "cases.csv").exists() for folder in folders) or not folders:
        report_evaluations(folders, out, validation, reference)
        return
    if validation is not None:
        raise InputError("--validation: expected an evaluation folder with it, got results of compare_losses")
    if len(folders) == 1:
        report(folders[0], out, reference)
        return
    if reference is not None:
        raise InputError("--reference: expected one results folder with it, got several, whose methods are ranked")
    report_datasets(folders, out)


def _notices(results: Results, missing_reference: str | None) -> list[str]:
    """Return what a reader should know before the numbers."""
    notices = []
    if len(set(results.patients)) < FEWEST_PATIENTS:
        notices.append(
            f"{results.patient_count}: too few to tell which loss is better. Intervals, tests and marks of the "
            f"best need at least {FEWEST_PATIENTS}; cross-validation (compare_losses --folds) tests every patient."
        )
    if results.test_sets:
        listed = ", ".join(results.test_sets)
        notices.append(
            f"Of other origin than the training data (shift): {listed}. Networks and temperatures are the same there, "
            "nothing was fitted on these cases. A network can be more wrong, and surer of it, than at home, and a "
            "temperature that helps at home can help less there or do harm."
        )
    for test_set in results.test_sets:
        evaluated = [method.name for method in results.at(Condition(test_set)).methods]
        if lacking := [method.label for method in results.methods if method.name not in evaluated]:
            notices.append(f"Not evaluated on {test_set}: {', '.join(lacking)}.")
    if results.unfinished_test_sets:
        notices.append(f"Not evaluated with all folds yet: {', '.join(results.unfinished_test_sets)}.")
    if results.missing:
        notices.append(f"Not finished yet: {'; '.join(results.missing)}.")
    seeds = {method.label: ", ".join(str(run.settings.seed) for run in method.runs) for method in results.methods}
    if len(set(seeds.values())) > 1:
        listed = "; ".join(f"{label} {numbers}" for label, numbers in seeds.items())
        notices.append(f"Losses have different seeds, so differences and ranks are not entirely fair: {listed}.")
    if missing_reference:
        why = "not finished" if missing_reference in results.planned else "not among the methods; choose --reference"
        notices.append(f"There are no differences, since {missing_reference} is {why}.")
    return notices
