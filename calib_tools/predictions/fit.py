"""The fit of a calibrator on saved predictions."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from calib_components.errors import InputError, check_choice
from calib_components.metrics.measures import Case
from calib_components.metrics.regions import Region
from calib_components.posthoc import KINDS, Calibrator, Estimate, LeftOut, TemperatureScaling
from calib_components.posthoc.comparison import simpler_fits
from calib_tools.parallel import map_cases
from calib_tools.predictions.cases import check_background, count_agreement, read_case
from calib_tools.predictions.classes import IGNORED, Classes
from calib_tools.predictions.formats import SMALLEST, Stored
from calib_tools.predictions.pairing import LabelledPrediction

ReadStored = Callable[[LabelledPrediction], tuple[Case, Stored]]
ROUNDING = 0.05  # most that the rounding of stored probabilities may change T by, relative
EXACT = "exact"  # the fit in which stored zeros are zeros, but for that of the label
MISSED = "missed"  # the fit in which a stored 0 of the label is the smallest float32, too
IMPOSSIBLE = -1e4  # logit of a probability of 0, at all temperatures that are fitted
LEAST = math.log(SMALLEST)  # logit of the smallest probability
FLOATING = 1e-30  # what a stored 0 of 32 bits or more is below


def fit_calibrator(
    pairs: Sequence[LabelledPrediction],
    classes: Classes,
    region: Region,
    patients: Mapping[str, str],
    workers: int | None = None,
    kind: str = "temperature",
    cropped: bool = False,
    compare: bool = True,
) -> tuple[Calibrator, Estimate]:
    """Fit a calibrator on saved probabilities, and print its estimate, and what it and simpler ones
    give on patients that are left out.

    A stored 0 means less than half a step of what it is stored in. In the fit it is half a step.
    The temperature is also fitted with these zeros as zeros, unless they are of the label, and with
    those of the label as small as can be: the truth lies between the three.

    Args:
        pairs: The predictions and their labels.
        classes: What their channels are.
        region: Voxels to fit on.
        patients: Patient of each case.
        workers: Number of processes.
        kind: Name of the calibrator, one of `calib_components.posthoc.KINDS`.
        cropped: Whether to leave out voxels of certain background, which lie outside of what the
            network saw.
        compare: Whether to compare it with simpler ones.

    Raises:
        InputError: A file or an option is unsuitable, or the probabilities are stored so coarsely
            that these temperatures differ by more than 5 %.
    """
    _check_region(region, classes)
    check_choice("--calibrator", kind, KINDS)
    calibrator = KINDS[kind](region, IGNORED, classes.sigmoid)
    compared = simpler_fits(calibrator)
    read = functools.partial(_read_stored, classes=classes, cropped=cropped)
    _fit(calibrator, compared, pairs, read, patients, workers)
    estimate = calibrator.compute()
    _print_estimate(estimate, region)
    if compare and estimate.patients > 1 and not classes.sigmoid:
        for each in compared:
            each.compute()
        left_out = LeftOut([*compared, calibrator], classes.structures, IGNORED)
        compare_case = functools.partial(
            _compare_case, read=read, empty=left_out, patients=patients
        )
        for rows in map_cases(compare_case, pairs, workers, "compare"):
            left_out.rows += rows
        print(left_out.describe())
    return calibrator.with_state(calibrator.state()), estimate


def _fit(
    calibrator: Calibrator,
    compared: Sequence[Calibrator],
    pairs: Sequence[LabelledPrediction],
    read: ReadStored,
    patients: Mapping[str, str],
    workers: int | None,
) -> None:
    """Add all cases to a calibrator and those that it is compared with, and check what is
    stored.
    """
    fits: dict[str, Any] = {each.name: each for each in (*compared, calibrator)}
    for name in (EXACT, MISSED):
        fits[name] = TemperatureScaling(calibrator.region, IGNORED, calibrator.sigmoid)
    ends = [fits[name] for name in (TemperatureScaling.name, EXACT, MISSED)]
    file = pairs[0].prediction.files[0]
    for number in calibrator.passes():
        fit = functools.partial(_fit_case, read=read, empty=copy.deepcopy(fits), patients=patients)
        fitted = map_cases(fit, pairs, workers, "fit")
        for of_case, _ in fitted:
            for name, part in of_case.items():
                fits[name].add(part)
        if number == 0:
            check_background([counts for _, counts in fitted], file)
            rounded, exact, missed = (end.best() for end in ends)
            _check_rounding(rounded, exact, missed, file)
        fits = {calibrator.name: calibrator}


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


def _check_region(region: Region, classes: Classes) -> None:
    moved = {channel for channel, codes in enumerate(classes.codes) if codes != {channel}}
    if not classes.sigmoid and moved & {*region.classes}:
        raise InputError(
            "--region: a class has a label code that is not its channel. Name a region like"
            " predicted."
        )


def _print_estimate(estimate: Estimate, region: Region) -> None:
    symbol = "T" if estimate.name == "temperature" else estimate.name
    where = "all voxels" if region.kind == "all" else f"the voxels of region {region.name}"
    print(f"{symbol} = {estimate.summary()}")
    print(
        f"NLL {estimate.nll_before:.4f} -> {estimate.nll_after:.4f} over {where}, which it is"
        " fitted on"
    )
    print("\n".join([estimate.effect(region.by_prediction), *estimate.warnings()]))


def _fit_case(
    pair: LabelledPrediction,
    read: ReadStored,
    empty: Mapping[str, Any],
    patients: Mapping[str, str],
) -> tuple[Mapping[str, Any], list[list[int]]]:
    saved, stored = read(pair)
    logits = to_logits(stored, saved.sigmoid)
    fits, labels = copy.deepcopy(empty), saved.labels()
    p = torch.from_numpy(stored.values)
    zero, one = p <= stored.lowest, (p >= stored.highest) & saved.sigmoid
    is_exact = not (zero.any() or one.any())
    for name, fit in fits.items():
        if is_exact and name in (EXACT, MISSED):
            fit.add(fits[TemperatureScaling.name])
            continue
        for label in labels:
            given = logits
            if name in (EXACT, MISSED):
                given = _with_zeros(logits, zero, one, label, name)
            fit.update(given[None], label[None], patients[pair.name])
        fit.scale(1 / len(labels))  # a patient counts once, whoever labelled it
    return fits, count_agreement(saved)


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


def _compare_case(
    pair: LabelledPrediction, read: ReadStored, empty: LeftOut, patients: Mapping[str, str]
) -> list[dict[str, Any]]:
    compared, patient = copy.copy(empty), patients[pair.name]
    compared.rows = []
    saved, stored = read(pair)
    calibrated = compared.calibrated(to_logits(stored, saved.sigmoid)[None], patient)
    for label in saved.labels():
        by_name = {name: values[0] for name, values in calibrated.items()}
        compared.update(by_name, label, patient)
    return compared.rows


def _read_stored(pair: LabelledPrediction, classes: Classes, cropped: bool) -> tuple[Case, Stored]:
    saved = read_case(pair, classes)
    assert saved.probabilities is not None
    if cropped:
        foreground = saved.probabilities if classes.sigmoid else saved.probabilities[1:]
        for label in saved.labels():
            label.masked_fill_((foreground == 0).all(0), IGNORED)
    stored = Stored(saved.probabilities.numpy(), saved.lowest, saved.highest)
    return saved, _with_ends(stored)


def _with_ends(stored: Stored) -> Stored:
    """Return stored probabilities with what a 0 and a 1 can have been, for a fit.

    Floating point may hold coarser numbers, such as those of a file that was converted: then at
    most half of the smallest number that is there.
    """
    p, low, high, *_ = stored
    if low > FLOATING or not ((p <= low) | (p >= high)).any():
        return stored
    smallest = p.min(initial=1, where=p > low)
    largest = p.max(initial=0, where=p < high)
    return stored._replace(lowest=max(low, smallest / 2), highest=min(high, (1 + largest) / 2))


def to_logits(stored: Stored, sigmoid: bool) -> torch.Tensor:
    """Return logits `(C, X, Y, Z)` of stored probabilities.

    Logarithms of probabilities are the logits, up to one number for each voxel, which softmax
    ignores.
    """
    p = torch.from_numpy(stored.values)
    if sigmoid:
        return p.clamp(stored.lowest, stored.highest).logit()
    return p.clamp_min(stored.lowest).log()


def to_probabilities(logits: torch.Tensor, sigmoid: bool) -> torch.Tensor:
    """Return the probabilities of logits `(B, C, X, Y, Z)`."""
    return logits.sigmoid() if sigmoid else logits.softmax(1)
