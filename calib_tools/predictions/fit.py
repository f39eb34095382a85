"""The fit of a calibrator on saved predictions."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping
from pathlib import Path

import torch

from calib_components.errors import InputError, check_choice
from calib_components.metrics.regions import Region
from calib_components.posthoc import Calibrator, Estimate, TemperatureScaling
from calib_tools.predictions.cases import SavedCase, SavedCases
from calib_tools.predictions.classes import Classes
from calib_tools.predictions.formats import SMALLEST
from calib_workflows.cases import LabelledCase
from calib_workflows.data.facts import IGNORED
from calib_workflows.fit import (
    CHOICES,
    comparison_table,
    describe_estimate,
    describe_fit,
    fit_calibrator,
    fit_to_cases,
)

ROUNDING = 0.05  # most that the rounding of stored probabilities may change T by, relative
# Fits that differ in what a stored 0 is
ROUNDED = "rounded"  # half a step
EXACT = "exact"  # 0, but half a step of the label
MISSED = "missed"  # 0, but the smallest float32 of the label
IMPOSSIBLE = -1e4  # logit of a probability of 0, at all temperatures that are fitted
LEAST = math.log(SMALLEST)  # logit of the smallest probability


def fit_saved(
    cases: SavedCases, region: Region, choice: str | None = None
) -> tuple[Calibrator, Estimate | None, str]:
    """Fit calibrators on saved probabilities, and print what they give on patients that are left
    out; of sigmoids, a temperature alone.

    A stored 0 means less than half a step of what it is stored in. In the fit it is half a step.
    The temperature is also fitted with these zeros as zeros, unless they are of the label, and with
    those of the label as small as can be: the truth lies between the three.

    Args:
        cases: The predictions and their labels.
        region: Voxels to fit on.
        choice: Name of the calibrator, one of `calib_workflows.fit.CHOICES`; None for the advised.

    Returns:
        The calibrator; its estimate, None of none; and the comparison as CSV, empty of sigmoids.

    Raises:
        InputError: A file or an option is unsuitable, or the probabilities are stored so coarsely
            that these temperatures differ by more than 5 %.
    """
    classes = cases.classes
    _check_region(region, classes)
    if choice is not None:
        choices = [TemperatureScaling.name] if classes.sigmoid else CHOICES
        check_choice("--calibrator", choice, choices)
    _check_stored(cases, region)
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


def _check_stored(cases: SavedCases, region: Region) -> None:
    """Refuse probabilities that are stored too coarsely, see `fit_saved`."""
    fits = {
        name: TemperatureScaling(region, IGNORED, cases.classes.sigmoid)
        for name in (ROUNDED, EXACT, MISSED)
    }
    for of_case in cases.map(functools.partial(_fit_ends, empty=copy.deepcopy(fits))):
        for name, part in of_case.items():
            fits[name].add(part)
    rounded, exact, missed = (fit.best() for fit in fits.values())
    _check_rounding(rounded, exact, missed, cases.pairs[0].prediction.file)


def _check_rounding(rounded: float, exact: float, missed: float, file: Path) -> None:
    """Raise `InputError`, which names a file, if temperatures that bracket the true one differ too
    much.
    """
    if _differ(rounded, exact):
        low, high = sorted([rounded, exact])
        raise InputError(
            f"{file}: probabilities are stored too coarsely to fit a calibrator. A stored 0, and of"
            " sigmoids a stored 1, stands for many numbers, so the temperature may be from"
            f" {low:.3f} to {high:.3f}. Predict again and save float32 probabilities, as"
            " inference.yaml and run_cases infer do with --bits 32; if they are, fit in Python on"
            " the logits."
        )
    if _differ(rounded, missed):
        raise InputError(
            f"{file}: the stored probability of what a voxel is labelled as is 0 so often that the"
            f" temperature may be from {rounded:.3f} to {missed:.3f}. Save float32 probabilities,"
            " as inference.yaml and run_cases infer do with --bits 32; if they are, voxels with"
            " labels may lie outside of what the network saw: leave them out with --ignore_index."
        )


def _differ(one: float, other: float) -> bool:
    return abs(one - other) > ROUNDING * (one + other) / 2


def _fit_ends(
    case: LabelledCase, empty: Mapping[str, TemperatureScaling]
) -> dict[str, TemperatureScaling]:
    """Return the fits of a case."""
    assert isinstance(case, SavedCase)
    fits, stored, labels = copy.deepcopy(dict(empty)), case.stored, case.labels
    p = torch.from_numpy(stored.values)
    zero, one = p <= stored.lowest, (p >= stored.highest) & case.classes.sigmoid
    is_exact = not (zero.any() or one.any())
    for name, fit in fits.items():
        if is_exact and name != ROUNDED:
            fit.add(fits[ROUNDED])
            continue
        for label in labels:
            logits = case.logits
            if name != ROUNDED:
                logits = _with_zeros(logits, zero, one, label, name)
            fit.update(logits[None], label[None], case.patient)
        fit.scale(1 / len(labels))
    return fits


def _with_zeros(
    logits: torch.Tensor, zero: torch.Tensor, one: torch.Tensor, label: torch.Tensor, name: str
) -> torch.Tensor:
    """Return the logits `(C, X, Y, Z)` of the fit of a name, from where 0 is stored and, by a
    sigmoid, 1.
    """
    if len(label) == len(logits):  # of sigmoids
        is_label, is_other = label == 1, label == 0
    else:
        is_label = label == torch.arange(len(logits)).view(-1, 1, 1, 1)
        is_other = ~is_label
    given = logits.masked_fill(zero & ~is_label, IMPOSSIBLE)
    given = given.masked_fill_(one & ~is_other, -IMPOSSIBLE)
    if name == MISSED:
        given = given.masked_fill_(zero & is_label, LEAST).masked_fill_(one & is_other, -LEAST)
    return given
