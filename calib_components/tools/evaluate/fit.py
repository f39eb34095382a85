"""The fit of a calibrator on saved predictions."""

from __future__ import annotations

import copy
import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence

import torch

from calib_components.errors import InputError, check_choice
from calib_components.metrics.regions import Region, read_region
from calib_components.posthoc import KINDS, Calibrator, Estimate
from calib_components.posthoc.costs import Costs
from calib_components.tools.evaluate.classes import IGNORED, Classes
from calib_components.tools.evaluate.notes import (
    Notes,
    check_background,
    count_right,
    other_beside,
    warn_of_other_beside,
)
from calib_components.tools.evaluate.pairs import Case, Saved, read_case
from calib_components.tools.parallel import map_cases

# Share of the NLL by voxels with a stored probability of 0, from which they are reported
DECISIVE = 0.1


def fit_calibrator(
    cases: Sequence[Case],
    classes: Classes,
    region: Region,
    patients: Mapping[str, str],
    workers: int | None = None,
    cropped: bool = False,
    check_beside: Callable[[Sequence[Notes]], None] = warn_of_other_beside,
    kind: str = "temperature",
) -> tuple[Calibrator, Estimate]:
    """Fit a calibrator of a kind on saved probabilities, and print what to know of it. See
    `calibrate_predictions`.

    With `cropped`, voxels of certain background are left out, which lie outside of what the network
    saw. What to do about label maps beside the probabilities that are not of them is up to
    `check_beside`.
    """
    other_codes = [channel for channel, codes in enumerate(classes.codes) if codes != {channel}]
    if not classes.sigmoid and {*other_codes} & {*region.classes}:
        raise InputError(
            "--region: a class has a label code that is not its channel. Name a region like"
            " predicted."
        )
    check_choice("--calibrator", kind, KINDS)
    pooled = KINDS[kind](region, IGNORED, classes.sigmoid)
    for _ in pooled.passes():
        fit = functools.partial(
            _fit_case,
            empty=copy.deepcopy(pooled),
            classes=classes,
            patients=patients,
            cropped=cropped,
        )
        fitted = map_cases(fit, cases, workers, "fit")
        for of_case, _ in fitted:
            pooled.add(of_case)
    notes = [note for _, note in fitted]
    check_background(notes)
    check_beside(notes)
    estimate = pooled.compute()
    where = "all voxels" if region.kind == "all" else f"the voxels of region {region.name}"
    print(f"{'T' if kind == 'temperature' else kind} = {estimate.summary()}")
    print(
        f"NLL {estimate.nll_before:.4f} -> {estimate.nll_after:.4f} over {where}, which it is"
        " fitted on"
    )
    print("\n".join([estimate.effect(region.by_prediction), *estimate.warnings()]))
    candidates = {
        "before": KINDS[kind](region, IGNORED, classes.sigmoid),
        "after": pooled,
        **estimate.alternatives(),
    }
    measure = functools.partial(
        _measure_case, candidates=candidates, classes=classes, cropped=cropped
    )
    first, *others = map_cases(measure, cases, workers, "measure")
    for name, own in first.items():
        print(f"{name}: {sum((costs[name] for costs in others), own).describe()}")
    voxels, nll = (sum(note[key] for note in notes) for key in ("denied", "nll"))
    if (share := nll / max(estimate.nll_before * estimate.voxels, nll, 1e-9)) >= DECISIVE:
        number = sum(note["denied"] > 0 for note in notes)
        print(
            f"{voxels} voxels, in {number} of {len(cases)} cases, have a stored probability of 0"
            f" for their label and make up {100 * share:.0f} % of the NLL, so they decide the fit."
            " They may lie outside of what the network saw, or be rounded to 0."
        )
    return pooled, estimate


def _fit_case(
    case: Case, empty: Calibrator, classes: Classes, patients: Mapping[str, str], cropped: bool
) -> tuple[Calibrator, Notes]:
    saved, logits = _read_logits(case, classes, cropped)
    fit = copy.deepcopy(empty)
    fit.update(logits[None], saved.label[None], patients[case.name])
    denied, nll = _count_denied(saved, fit)
    notes = {"file": str(case.prediction.files[0]), "beside": other_beside(case, saved, classes)}
    return fit, {**notes, "right": count_right(saved), "denied": denied, "nll": nll}


def _measure_case(
    case: Case, candidates: Mapping[str, Calibrator], classes: Classes, cropped: bool
) -> dict[str, Costs]:
    saved, logits = _read_logits(case, classes, cropped)
    to_probabilities = torch.sigmoid if classes.sigmoid else functools.partial(torch.softmax, dim=1)
    found = {
        name: to_probabilities(candidate(logits[None])) for name, candidate in candidates.items()
    }
    return {
        name: Costs.measure(p, saved.label[None], IGNORED, classes.sigmoid)
        for name, p in found.items()
    }


def _read_logits(case: Case, classes: Classes, cropped: bool) -> tuple[Saved, torch.Tensor]:
    saved = read_case(case, classes)
    assert saved.probabilities is not None
    if cropped:
        foreground = saved.probabilities if classes.sigmoid else saved.probabilities[1:]
        saved.label.masked_fill_((foreground == 0).all(0), IGNORED)
    return saved, logits_of(saved.probabilities, saved.lowest, saved.highest, classes.sigmoid)


def _count_denied(saved: Saved, fit: Calibrator) -> tuple[int, float]:
    """Return the number of voxels whose stored probability of their label is 0, and their share of
    the sum of NLLs.
    """
    assert saved.probabilities is not None
    number, nll = 0, 0.0
    options = (fit.region, fit.ignore_index, fit.sigmoid)
    with warnings.catch_warnings():
        # Of values that are 0 or 1 only: see `DECISIVE`
        warnings.filterwarnings("ignore", message="y_pred")
        for voxels in read_region(saved.probabilities[None], saved.label[None], *options):
            denied = voxels.label[voxels.p_label == 0]
            # A stored 1 where there is nothing
            spurious = int((denied == 0).sum()) if fit.sigmoid else 0
            number += len(denied)
            nll -= (len(denied) - spurious) * math.log(saved.lowest) + spurious * math.log(
                1 - saved.highest
            )
    return number, nll


def logits_of(
    probabilities: torch.Tensor, lowest: float, highest: float, sigmoid: bool
) -> torch.Tensor:
    """Return logits that give these probabilities, which are between `lowest` and, with `sigmoid`,
    `highest`.
    """
    return (
        probabilities.clamp(lowest, highest).logit()
        if sigmoid
        else probabilities.clamp_min(lowest).log()
    )
