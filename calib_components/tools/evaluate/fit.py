"""The fit of a temperature on saved predictions."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from calib_components.errors import InputError
from calib_components.metrics.regions import Region
from calib_components.metrics.voxels import read_voxels
from calib_components.posthoc import TemperatureEstimate, TemperatureScaling
from calib_components.tools.evaluate.classes import IGNORED, Classes
from calib_components.tools.evaluate.noted import other_beside, warn_of_other_beside
from calib_components.tools.evaluate.pairs import Case, Saved, read_case
from calib_components.tools.parallel import parallel

__all__ = ["fit_temperature", "logits_of"]

PRELOAD = [__name__]
DECISIVE = 0.1  # share of the NLL by voxels of probability 0 from which they are spoken of


def fit_temperature(
    cases: Sequence[Case],
    classes: Classes,
    region: Region,
    patients: Mapping[str, str],
    processes: int,
    cropped: bool = False,
) -> TemperatureEstimate:
    """Fit a temperature on saved probabilities, and print what to know of it.

    The logarithms of probabilities are the logits, but for one number a voxel that softmax does not see; with sigmoid
    channels, the logits are log p - log(1 - p).

    Args:
        cases: What `find_cases` found.
        classes: What their channels are.
        region: Voxels to fit on.
        patients: Patient of each case, by its name.
        processes: Number of processes, each with a case in memory.
        cropped: Whether the network saw a part of each image only, outside of which the background was stored as
            certain: such voxels are left out.

    Raises:
        InputError: A file cannot be read, see `read_case`, or there are no voxels in the region.
    """
    if not classes.sigmoid:  # of which each channel has the classes 0 and 1
        for channel, codes in enumerate(classes.codes):
            if channel in region.classes and codes != {channel}:
                raise InputError(
                    f"--region: expected a name such as predicted, got {list(region.classes)}: channel {channel} has "
                    f"the label code {'+'.join(map(str, sorted(codes)))}"
                )
    pooled = TemperatureScaling(region, IGNORED if cropped else classes.ignore_index, classes.sigmoid)
    fit_case = functools.partial(_fit_case, classes=classes, region=region, patients=patients, cropped=cropped)
    with parallel(fit_case, cases, processes, "fit", PRELOAD) as results:
        fitted = list(results)
    for fit, _, _ in fitted:
        pooled.add(fit)
    warn_of_other_beside([case.prediction.files[0] for case in cases], [beside for _, _, beside in fitted])
    try:
        estimate = pooled.compute()
    except ValueError as error:
        name = "--region" if region.kind != "all" else "labels" if cropped else "--ignore_index"
        raise InputError(f"{name}: expected voxels to fit a temperature on, got none: {error}") from error
    _print(estimate, region, [denied for _, denied, _ in fitted])
    return estimate


class _Denied(NamedTuple):
    """Voxels whose stored probability of what they are is 0."""

    voxels: int
    nll: float


def _fit_case(
    case: Case, classes: Classes, region: Region, patients: Mapping[str, str], cropped: bool
) -> tuple[TemperatureScaling, _Denied, tuple[int, int]]:
    saved = read_case(case, classes)
    assert saved.probabilities is not None
    fit = TemperatureScaling(region, IGNORED if cropped else classes.ignore_index, classes.sigmoid)
    if cropped:
        foreground = saved.probabilities if classes.sigmoid else saved.probabilities[1:]
        saved.label.masked_fill_((foreground == 0).all(0), IGNORED)
    logits = logits_of(saved.probabilities, saved.lowest, saved.highest, classes.sigmoid)
    fit.update(logits[None], saved.label[None], patients[case.name])
    beside = (0, 0) if cropped else other_beside(case, saved, classes)  # cropped ones have been compared
    return fit, _count_denied(saved, saved.probabilities, fit), beside


def _count_denied(saved: Saved, probabilities: torch.Tensor, fit: TemperatureScaling) -> _Denied:
    number, nll = 0, 0.0
    options = (fit.region, fit.ignore_index, fit.sigmoid)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "y_pred: expected probabilities, got only 0 and 1")  # spoken of as denied
        for voxels in read_voxels(probabilities[None], saved.label[None], *options):
            denied = voxels.label[voxels.p_label == 0]
            spurious = int((denied == 0).sum()) if fit.sigmoid else 0  # a stored 1 where there is nothing
            number += len(denied)
            nll -= (len(denied) - spurious) * math.log(saved.lowest) + spurious * math.log(1 - saved.highest)
    return _Denied(number, nll)


def _print(estimate: TemperatureEstimate, region: Region, denied: Sequence[_Denied]) -> None:
    where = "all voxels" if region.kind == "all" else f"the voxels of region {region.name}"
    print(f"T = {estimate.summary()}")
    print(f"NLL {estimate.nll_before:.4f} -> {estimate.nll_after:.4f} over {where}, which T is fitted on")
    print(estimate.effect(region.by_prediction))
    for warning in estimate.warnings():
        print(warning)
    voxels, nll = (sum(values) for values in zip(*denied, strict=True))
    if (share := nll / max(estimate.nll_before * estimate.voxels, nll, 1e-9)) >= DECISIVE:
        print(
            f"{voxels} voxels, in {sum(case.voxels > 0 for case in denied)} of {len(denied)} cases, have a stored "
            f"probability of 0 for what they are and make up {100 * share:.0f} % of the NLL, so they decide T. They "
            "may lie outside of what the network saw, or be rounded to 0."
        )


def logits_of(probabilities: torch.Tensor, lowest: float, highest: float, sigmoid: bool) -> torch.Tensor:
    """Return logits that give these probabilities, which are between `lowest` and, with `sigmoid`, `highest`."""
    return probabilities.clamp(lowest, highest).logit() if sigmoid else probabilities.clamp_min(lowest).log()
