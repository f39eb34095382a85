"""The fit of a calibrator on saved predictions."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from calib_components.errors import InputError, check_choice
from calib_components.metrics.measures import Case
from calib_components.metrics.regions import Region
from calib_components.posthoc import KINDS, Calibrator, Estimate, LeftOut, TemperatureScaling
from calib_components.posthoc.comparison import simpler_fits
from calib_components.tools.evaluate.cases import check_background, count_agreement, read_case
from calib_components.tools.evaluate.classes import IGNORED, Classes
from calib_components.tools.evaluate.formats import Stored
from calib_components.tools.evaluate.pairing import LabelledPrediction
from calib_components.tools.parallel import map_cases

ReadStored = Callable[[LabelledPrediction], tuple[Case, Stored]]
ROUNDING = 0.05  # most that the rounding of stored probabilities may change T by, relative
EXACT = "exact"  # the fit in which stored zeros are zeros
IMPOSSIBLE = -1e4  # logit of a probability of 0, at all temperatures that are fitted


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
    The temperature is also fitted with these zeros as zeros: the truth lies between the two.

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
            that the two temperatures differ by more than 5 %.
    """
    _check_region(region, classes)
    check_choice("--calibrator", kind, KINDS)
    calibrator = KINDS[kind](region, IGNORED, classes.sigmoid)
    compared = simpler_fits(calibrator)
    exact = TemperatureScaling(region, IGNORED, classes.sigmoid)
    fits: dict[str, Any] = {EXACT: exact, **{each.name: each for each in (*compared, calibrator)}}
    temperature = fits[TemperatureScaling.name]
    read = functools.partial(_read_stored, classes=classes, cropped=cropped)
    for _ in calibrator.passes():
        fit = functools.partial(_fit_case, read=read, empty=copy.deepcopy(fits), patients=patients)
        fitted = map_cases(fit, pairs, workers, "fit")
        for of_case, _ in fitted:
            for name, part in of_case.items():
                fits[name].add(part)
        fits = {calibrator.name: calibrator}
    check_background([counts for _, counts in fitted], pairs[0].prediction.files[0])
    _check_rounding(temperature.best(), exact.best(), pairs[0].prediction.files[0])
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


def _check_rounding(rounded: float, exact: float, file: Path) -> None:
    """Raise `InputError`, which names a file, if temperatures that bracket the true one differ too
    much.
    """
    low, high = sorted([rounded, exact])
    if high - low > ROUNDING * (low + high) / 2:
        raise InputError(
            f"{file}: probabilities are stored too coarsely to fit a calibrator. A stored 0 may be"
            f" up to half a step, so the temperature is between {low:.3f} and {high:.3f}. Save"
            " float32 probabilities; inference.yaml and run_cases infer do so with --bits 32."
        )


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
    for name, fit in fits.items():
        for label in labels:
            given = logits
            if name == EXACT:
                given = _with_zeros(logits, torch.from_numpy(stored.values), label, saved.sigmoid)
            fit.update(given[None], label[None], patients[pair.name])
        fit.scale(1 / len(labels))  # a patient counts once, whoever labelled it
    return fits, count_agreement(saved)


def _with_zeros(
    logits: torch.Tensor, p: torch.Tensor, label: torch.Tensor, sigmoid: bool
) -> torch.Tensor:
    """Return logits `(C, X, Y, Z)` in which a stored 0 is 0, and a sigmoid's 1 is 1, unless the
    label says otherwise.
    """
    if sigmoid:
        certain = logits.masked_fill((p == 0) & (label != 1), IMPOSSIBLE)
        return certain.masked_fill_((p == 1) & (label != 0), -IMPOSSIBLE)
    is_label = label == torch.arange(len(p)).view(-1, 1, 1, 1)
    return logits.masked_fill((p == 0) & ~is_label, IMPOSSIBLE)


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
    return saved, Stored(saved.probabilities.numpy(), saved.lowest, saved.highest)


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
