"""The sections of a report of evaluation folders."""

from __future__ import annotations

from dataclasses import replace

from calib_components.tools.report.clinical import (
    expected_dsc_section,
    risk_section,
    thresholds_section,
    volumes_section,
)
from calib_components.tools.report.evaluations import Evaluations, FolderEvaluation, FolderMethod
from calib_components.tools.report.means import (
    ABOUT_FOUND_IN_ONE,
    ABOUT_FURTHER,
    ABOUT_REGIONS,
    FOUND_IN_ONE,
    OF_FOREGROUND,
    Row,
    count_found_in_one,
    mean_rows,
    means_of_structures,
    region_diagrams,
)
from calib_components.tools.report.page import Picture, Section, TableCell
from calib_components.tools.report.sections import differences_section, ranks_section
from calib_components.tools.report.statistics import FEWEST_PATIENTS
from calib_components.tools.report.tables import heading

__all__ = ["evaluation_sections"]

ECES = ("ece_all", "ece_predicted", "ece_plausible", "ece_predicted_band")  # where the prediction chooses the voxels
OF_REGIONS = (*ECES, "smooth_ece_all", "smooth_ece_predicted", "nll_all", "brier_all", "ece")
MANY = 30  # patients from which intervals need no warning
ABOUT_FEW = (  # by simulation of the intervals of `mean_with_interval`
    "Intervals over few patients are too narrow: in simulations with 8 and 16 patients, they held the mean in 87 and "
    "92 %, that of skewed measures such as HD95 in about 78 and 83 %. "
)
RANKED = ("dsc", "hd95", "ece_all", "ece_predicted", "nll_all")


def evaluation_sections(
    found: Evaluations, reference: FolderMethod | None, validation: FolderEvaluation | None
) -> list[Section]:
    """Return all sections but the pictures of cases.

    Args:
        found: The evaluations.
        reference: The one that the others are compared with; None where there are no others.
        validation: Evaluation of validation cases, on which thresholds are chosen; None for none.
    """
    measures = found.measured(("dsc", "hd95", *(OF_REGIONS if found.has_regions else OF_FOREGROUND)))
    rows = [Row(method, TableCell(method.label)) for method in found.methods]
    sections: list[Section | None] = [_means_section(found, rows, measures)]
    if reference is not None:
        # Differences in a region that the ground truth chooses would not be of calibration.
        compared = [name for name in measures if name not in OF_FOREGROUND] if found.has_regions else measures
        sections += [differences_section(found, reference, compared), ranks_section(found, found.measured(RANKED))]
    if found.has_regions:
        cases = "all cases" if found.has_all_cases else "the common cases"
        diagrams = region_diagrams(found, cases)
        of_classes = []
        for method in found.methods if found.has_all_cases else []:
            if (png := method.evaluation.picture("reliability_classes.png")) is not None:
                title = f"{method.label}: each class, over all voxels"
                of_classes.append(Picture(f"reliability_classes_{method.name}", title, png))
        sections.append(replace(diagrams, pictures=[*diagrams.pictures, *of_classes]))
    sections += [
        means_of_structures(rows, found, "the evaluation"),
        volumes_section(found),
        thresholds_section(found, validation),
        risk_section(found),
        expected_dsc_section(found),
    ]
    return [section for section in sections if section is not None]


def _means_section(found: Evaluations, rows: list[Row], measures: list[str]) -> Section:
    cells, records = mean_rows(rows, measures, found)
    for line, counts in zip(cells, count_found_in_one(rows), strict=True):
        line.append(counts)
    best = "the best is bold, the second best underlined; " if len(rows) > 1 else ""
    cases = "1 case" if len(found.first.cases) == 1 else f"{len(found.first.cases)} cases"
    if found.patient_count != cases:
        cases += f" of {found.patient_count}"
    caption = (
        f"Mean over {cases}; {best}"
        f"below each mean: its 95 % interval over patients. HD95 is in {found.methods[0].evaluation.unit}. "
        f"{ABOUT_REGIONS if found.has_regions else ''}"
    )
    caption += "".join(text for measure, text in ABOUT_FURTHER.items() if measure in measures)
    if any(measure.startswith("smooth_ece") for measure in measures):
        caption += "Smooth ECE: an ECE without bins. "
    if FEWEST_PATIENTS <= len(set(found.patients)) < MANY:
        caption += ABOUT_FEW
    header = ["", *(heading(name, "foreground") for name in measures), FOUND_IN_ONE]
    return Section("means", "Means", caption + ABOUT_FOUND_IN_ONE, header, cells, records)
