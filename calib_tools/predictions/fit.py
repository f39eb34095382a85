"""The fit of a calibrator on saved predictions."""

from __future__ import annotations

from calib_components.errors import InputError, check_choice
from calib_components.metrics.regions import Region
from calib_components.posthoc import Calibrator, Estimate, TemperatureScaling
from calib_tools.predictions.cases import SavedCases
from calib_tools.predictions.classes import Classes
from calib_workflows.data.facts import IGNORED
from calib_workflows.fit import (
    CHOICES,
    comparison_table,
    describe_estimate,
    describe_fit,
    fit_calibrator,
    fit_to_cases,
)


def fit_saved(
    cases: SavedCases, region: Region, choice: str | None = None
) -> tuple[Calibrator, Estimate | None, str]:
    """Fit calibrators on saved probabilities, and print what they give on patients that are left
    out; of sigmoids, a temperature alone.

    Args:
        cases: The predictions and their labels.
        region: Voxels to fit on.
        choice: Name of the calibrator, one of `calib_workflows.fit.CHOICES`; None for the advised.

    Returns:
        The calibrator; its estimate, None of none; and the comparison as CSV, empty of sigmoids.

    Raises:
        InputError: A file or an option is unsuitable, or probabilities are stored too coarsely, see
            `SavedCase.logits`.
    """
    classes = cases.classes
    _check_region(region, classes)
    if choice is not None:
        choices = [TemperatureScaling.name] if classes.sigmoid else CHOICES
        check_choice("--calibrator", choice, choices)
    if classes.sigmoid:
        fits = [TemperatureScaling(region, IGNORED, sigmoid=True)]
        (estimate,) = fit_to_cases(cases, fits)[0].values()
        print(*describe_estimate(estimate, region), sep="\n")
        return fits[0].with_state(fits[0].state()), estimate, ""
    fit = fit_calibrator(cases, classes.structures, choice, region)
    print(*describe_fit(fit, region, choice is not None), sep="\n")
    return fit.calibrator, fit.estimate, comparison_table(fit.compared)


def _check_region(region: Region, classes: Classes) -> None:
    moved = {channel for channel, codes in enumerate(classes.codes) if codes != {channel}}
    if not classes.sigmoid and moved & {*region.classes}:
        raise InputError(
            "--region: a class has a label code that is not its channel. Name a region like"
            " predicted."
        )
